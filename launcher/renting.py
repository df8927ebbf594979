"""Having machines rented, of the kind that meets the run's deadline, and counting what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from cluster import Cluster, ClusterError, TwoKinds
from fgtrain.runstore import RunFile
from launcher.buying import Aim, Pacer, wanted
from launcher.clock import Clock
from launcher.deadline import Capacity
from launcher.limits import Meter

T = TypeVar("T")


class Waits(ClusterError):
    """No spot machine is to be had, and the deadline leaves time to wait for one."""


class Renter:
    """Chooses the kind each time that machines are rented, where a cluster has two kinds."""

    def __init__(self, cluster: Cluster, run: RunFile, meter: Meter, clock: Clock, note: Callable[[str], None]) -> None:
        self._cluster = cluster if isinstance(cluster, TwoKinds) else None
        self._run, self._meter, self._clock, self._note = run, meter, clock, note
        self._pacer = Pacer(meter.pace)
        deadline = meter.limits.deadline
        self._aim = None if deadline is None else Aim(run.plan.steps, run.created, deadline)
        self._kind: Capacity | None = None
        self._waits = False

    def look(self, attempt: int, step: int) -> None:
        """Learn the run's pace."""
        self._pacer.look(self._clock.time(), attempt, step)
        self._meter.goes(self._pacer.pace)

    def rent(self, step: int, have: Callable[[], T], *, may_wait: bool = True) -> T:
        """Have machines rented by `have`; returns what that returns.

        Args:
            step: how far the run has got.
            have: rents them, of the preferred kind, if they are not rented yet.
            may_wait: whether to wait for spot machines where the deadline allows it; else on-demand ones do.

        Raises:
            Waits: there are none, and there is time.
            ClusterError: nothing is to be had.
        """
        refused: ClusterError | None = None
        for kind in self._kinds(step, may_wait):
            try:
                if self._cluster and kind:
                    self._cluster.prefer(self._run.name, spot=kind is Capacity.SPOT)
                found = have()
            except ClusterError as error:
                refused = error
                if self._cluster:
                    self._meter.holds(Capacity.NONE)
                continue
            self.count()
            return found
        assert refused is not None
        if self._waits:
            raise Waits(f"no spot machines ({refused}); the deadline leaves time to wait for them")
        raise refused

    def _kinds(self, step: int, may_wait: bool) -> Iterator[Capacity | None]:
        """Yield what to try, one after the other; None: what the settings say."""
        self._waits = False
        if self._cluster is None or self._aim is None:
            yield None
            return
        for spot in (True, False):
            kind = wanted(self._aim, self._pacer.pace, self._clock.time(), step, spot=spot)
            if kind is Capacity.NONE and may_wait:
                self._waits = True
                return
            yield Capacity.ON_DEMAND if kind is Capacity.NONE else kind
            if kind is not Capacity.SPOT:
                return

    def count(self) -> None:
        """Count what is rented by its price, and tell when it is of another kind than before."""
        spot = self._cluster.holds_spot(self._run.name) if self._cluster else None
        if spot is None:
            return
        kind = Capacity.SPOT if spot else Capacity.ON_DEMAND
        self._meter.holds(kind)
        if self._kind not in (None, kind):
            self._note(f"the machines are {kind.value} ones now")
        self._kind = kind

"""Having machines rented, of the kind that meets the run's deadline, and counting what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from cluster import CalledOff, Cluster, ClusterError, Held, Rented, TwoKinds
from fgtrain.runstore import RunFile
from launcher.buying import Aim, Pacer, wanted
from launcher.clock import Clock
from launcher.deadline import Capacity
from launcher.limits import Meter
from launcher.money import Terms, rate_of

T = TypeVar("T")


class Waits(ClusterError):
    """No spot machine is to be had, and the deadline leaves time to wait for one."""


class Renter:
    """Has a run's machines rented, of the kind that its deadline wants where there are two, and has them counted."""

    def __init__(
        self, cluster: Cluster, run: RunFile, meter: Meter, terms: Terms, clock: Clock, note: Callable[[str], None]
    ) -> None:
        self._cluster = cluster if isinstance(cluster, Rented) else None
        self._two_kinds = cluster if isinstance(cluster, TwoKinds) else None
        self._run, self._meter, self._terms, self._clock, self._note = run, meter, terms, clock, note
        self._pacer = Pacer(meter.pace)
        deadline = meter.limits.deadline
        self._aim = None if deadline is None else Aim(run.plan.steps, run.created, deadline)
        self._kind: Capacity | None = None
        self._number: int | None = None  # of what is held
        self._waits = False

    def look(self, attempt: int, step: int, *, waits: bool) -> None:
        """Learn the run's pace, and count what it holds now; `waits`: nothing is started on that now, on purpose."""
        self.count()
        waits = waits or (self._cluster is not None and self._number is None)
        self._pacer.look(self._clock.time(), attempt, step, waits=waits)
        self._meter.goes(self._pacer.pace)

    def rent(self, step: int, have: Callable[[], T], *, may_wait: bool = True) -> T:
        """Have machines rented by `have`; returns what that returns.

        Args:
            step: how far the run has got.
            have: rents them, of the preferred kind, if they are not rented yet.
            may_wait: whether to wait for spot machines where the deadline allows it; else on-demand ones do.

        Raises:
            Waits: there are none, and there is time.
            CalledOff: see `call_off`.
            ClusterError: nothing is to be had.
        """
        refused: ClusterError | None = None
        for kind in self._kinds(step, may_wait):
            try:
                return self._rent(kind, have)
            except CalledOff:
                raise
            except ClusterError as error:
                refused = error
                self.count()
        assert refused is not None
        if self._waits:
            raise Waits(f"no spot machines ({refused}); the deadline leaves time to wait for them")
        raise refused

    def _rent(self, kind: Capacity | None, have: Callable[[], T]) -> T:
        """Have machines of a kind, and tell the pacer when they are others than before."""
        if self._two_kinds and kind:
            self._two_kinds.prefer(self._run.name, spot=kind is Capacity.SPOT)
        self.count()
        before, asked = self._number, self._clock.time()
        found = have()
        self.count()
        if self._number not in (None, before):
            self._pacer.rented(asked)
        return found

    def _kinds(self, step: int, may_wait: bool) -> Iterator[Capacity | None]:
        """Yield what to try, one after the other; None: what the settings say."""
        self._waits = False
        if self._two_kinds is None or self._aim is None:
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

    def call_off(self) -> None:
        """End what `rent` waits for, if it does; from a handler of signals."""
        if self._cluster is not None:
            self._cluster.call_off(self._run.name)

    def count(self) -> None:
        """Count what is rented at the price that it was taken for, and tell when it is of another kind than before."""
        if self._cluster is None:
            return
        held = self._cluster.held(self._run.name)
        self._number = held.number if held else None
        if held is None:
            self._meter.holds_none()
            return
        self._meter.holds(rate_of(self._terms, held.offer))
        self._tell(held)

    def _tell(self, held: Held) -> None:
        kind = Capacity.SPOT if held.offer.spot else Capacity.ON_DEMAND
        if self._kind not in (None, kind):
            self._note(f"the machines are {kind.value} ones now")
        self._kind = kind

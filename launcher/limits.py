"""What a run may cost at most: reading the options, and the supervisor's meter."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import datetime

import msgspec

from fgtrain.errors import UserError
from fgtrain.lease import read_limits, read_spend
from fgtrain.limits import Limits, exceeded
from fgtrain.runstore import RunStore
from launcher.buying import Pace
from launcher.money import Prices

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WRITE_S = 5.0
_SETTLED_S = 60.0  # of steps, before a pace is believed
_BEHIND = 1.02  # a run this much too slow is told of


def parse_deadline(text: str, now: float) -> float:
    """Return a deadline in Unix seconds: a time (`2026-11-22T08:00`, local unless it says) or a duration (`12h`).

    Raises:
        UserError: it is neither, or past.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip()):
        return now + float(found[1]) * _UNITS_S[found[2]]
    try:
        at = datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise UserError(
            f"--deadline {text!r}: a duration such as 90m, 12h or 1.5d, or a time such as 2026-11-22T08:00"
        ) from None
    if at <= now:
        raise UserError(f"--deadline {text}: that is past")
    return at


def asked(args: argparse.Namespace) -> Limits:
    """Return the limits that the options say.

    Raises:
        UserError: one is no amount.
    """
    for option in ("max_cost", "max_hours", "max_idle"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{option.replace('_', '-')} {value:g}: must be above 0")
    until = parse_deadline(args.deadline, time.time()) if args.deadline else None
    return Limits(max_cost=args.max_cost, max_hours=args.max_hours, deadline=until, max_idle_hours=args.max_idle)


def check_priced(asked: Limits, prices: Prices | None) -> None:
    """Refuse to limit money where no price is known.

    Raises:
        UserError
    """
    if asked.max_cost is not None and prices is None:
        raise UserError("--max-cost: no price is known; set price_per_node_hour for the cluster in clusters.toml")


def set_limits(runs: RunStore, asked: Limits) -> Limits:
    """Record the limits asked for beside those that a run has, unless it is beyond them already; returns them all.

    Raises:
        UserError: it is.
    """
    old = read_limits(runs)
    new = msgspec.structs.replace(old, **{k: v for k, v in msgspec.structs.asdict(asked).items() if v is not None})
    if reason := exceeded(msgspec.structs.replace(new, max_idle_hours=None), read_spend(runs)):
        raise UserError(f"{reason}; say a higher one to go on")
    if new != old:
        runs.write("limits.json", new)
    return new


def go_back(runs: RunStore, step: int) -> None:
    """Count a run's steps from an earlier one on, which it was told to go back to."""
    spend = read_spend(runs)
    if step < spend.step:
        runs.write("spend.json", msgspec.structs.replace(spend, step=step))


class Meter:
    """Counts, for the supervisor, what a run costs, and says when it has to end.

    One `tick` now and then is all it needs; what it counted before, in another process, it takes from the store.
    """

    def __init__(
        self,
        runs: RunStore,
        prices: Prices | None,
        steps: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Count for a run of `steps` steps, by the price of spot nodes until `holds` says otherwise.

        `tell` is told, once each, when a deadline will be or is missed.
        """
        self._runs, self._steps, self._tell, self._clock = runs, steps, tell, clock
        self._held = True
        self._per_node_s = prices.spot / 3600 if prices else None
        self.limits, self._spend = read_limits(runs), read_spend(runs)
        self._spend = msgspec.structs.replace(self._spend, since=self._spend.seconds)
        self._last = self._written = clock()
        self._begun: int | None = None  # the step at the first tick
        self._paced: tuple[float, int] | None = None  # when, and at which step, the first later one was seen
        self._told: set[str] = set()

    @property
    def pace(self) -> Pace:
        """The run's pace so far."""
        return Pace(self._spend.step_s, self._spend.changeover_s)

    def goes(self, pace: Pace) -> None:
        """Keep the run's pace with what it costs."""
        self._spend = msgspec.structs.replace(self._spend, step_s=pace.step_s, changeover_s=pace.changeover_s)

    def holds(self, per_node_hour: float | None) -> None:
        """Count by this price of a node's hour from now on; None: it is not known."""
        self._held = True
        self._per_node_s = None if per_node_hour is None else per_node_hour / 3600

    def holds_none(self) -> None:
        """Count no nodes, whoever waits for them, until `holds` is called."""
        self._held = False

    def tick(self, nodes: int, step: int) -> str | None:
        """Count the time since the last tick for `nodes` nodes, if they are held; returns why the run must end, if so.

        Raises:
            StoreError: what was counted cannot be written; it is not forgotten.
        """
        now = self._clock()
        self._spend = self._spend.later(max(0.0, now - self._last), nodes if self._held else 0, self._per_node_s, step)
        self._last = now
        self._mind_deadline(now, step)
        reason = exceeded(self.limits, self._spend)
        if reason or now - self._written >= _WRITE_S:
            self._written = now
            self._runs.write("spend.json", self._spend)
        return reason

    def _mind_deadline(self, now: float, step: int) -> None:
        deadline = self.limits.deadline
        if deadline is None or step >= self._steps:
            return
        if now >= deadline:
            self._tell_once(f"the deadline has passed at step {step} of {self._steps}; the run goes on")
            return
        self._begun = step if self._begun is None else self._begun
        if self._paced is None:  # what passes before the run gets going is no pace
            self._paced = (now, step) if step > self._begun else None
            return
        needs_s = _needs_s(now - self._paced[0], step - self._paced[1], self._steps - step)
        if needs_s is not None and needs_s > _BEHIND * (deadline - now):
            late = (needs_s - (deadline - now)) / 3600
            self._tell_once(
                f"at this pace the deadline will be missed by {late:.1f} h; more nodes or on-demand ones help"
            )

    def _tell_once(self, text: str) -> None:
        kind = text.partition(" ")[0]
        if kind not in self._told:
            self._told.add(kind)
            self._tell(text)


def _needs_s(seconds: float, steps: int, left: int) -> float | None:
    """Return how long the steps that are left take at the pace seen; None if too little was seen."""
    return left * seconds / steps if steps and seconds >= _SETTLED_S else None

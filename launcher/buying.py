"""Spot or on-demand at each renting, so that a run meets its deadline: the policy of `launcher.deadline`, fed live.

The work that is left is taken from the run's own pace, and the changeover from what new machines took so far until they
trained. Both are kept in spend.json, so that whoever goes on with the run knows them.
"""

from __future__ import annotations

from typing import NamedTuple

from launcher.deadline import Capacity, Job, Moment, uniform_progress

CHANGEOVER_S = 600.0
"""From choosing machines to training on them, before it was seen."""

_NEWEST = 1 / 3
"""What the newest changeover counts for beside all those before."""

ASK_AGAIN_S = 60.0
"""How often spot machines are asked for while the run can wait for them."""


class Pace(NamedTuple):
    """How a run goes: seconds a step while it trains, seconds from asking for machines to the first new step on them.

    The latter has lost work in it, which is done again before; what is waited for is not in it. 0: not known yet.
    """

    step_s: float = 0.0
    changeover_s: float = 0.0


class Pacer:
    """Learns a run's pace from what the supervisor sees. Pure: times come from the caller."""

    def __init__(self, known: Pace) -> None:
        """Begin with what an earlier supervisor has learned."""
        self.pace = known
        self._attempt = 0
        self._mark: tuple[float, int] | None = None  # when, in this attempt, which step was seen first
        self._furthest: int | None = None
        self._change: tuple[float, float] | None = None  # what it has taken so far, and until when that was counted

    def rented(self, asked: float) -> None:
        """Take in that machines were had which were asked for at that time: a changeover began then."""
        self._change = (0.0, asked)

    def look(self, now: float, attempt: int, step: int, *, waits: bool = False) -> None:
        """Take in where the run is, in seconds of any clock.

        `waits`: there are no machines, or nothing is started on them on purpose. That belongs to no changeover.
        """
        if self._change is not None:
            took_s, until = self._change
            self._change = (took_s if waits else took_s + now - until, now)
        if attempt != self._attempt:
            self._attempt, self._mark = attempt, None
        if self._furthest is not None and step <= self._furthest:
            return
        if self._mark is not None and step > self._mark[1]:
            self.pace = self.pace._replace(step_s=(now - self._mark[0]) / (step - self._mark[1]))
        if self._furthest is not None and self._change is not None:
            self.pace = self.pace._replace(changeover_s=_reckoned(self.pace.changeover_s, self._change[0]))
            self._change = None
        self._mark, self._furthest = self._mark or (now, step), step


def _reckoned(known_s: float, newest_s: float) -> float:
    """Return what a changeover is reckoned to take after another one was seen."""
    return known_s + _NEWEST * (newest_s - known_s) if known_s else newest_s


class Aim(NamedTuple):
    """What a run is to reach: its steps, when it began, and its deadline, both in Unix seconds."""

    steps: int
    begun: float
    deadline: float


def wanted(aim: Aim, pace: Pace, now: float, step: int, *, spot: bool) -> Capacity:
    """Return what to rent for a run that holds nothing now. Pure.

    Args:
        aim: what it is to reach.
        pace: how it goes; while that is not known, spot is tried, and on-demand taken where there is none.
        now: Unix seconds.
        step: how far it has got.
        spot: whether spot machines may be there; False: they have just been refused.
    """
    if not pace.step_s:
        return Capacity.SPOT if spot else Capacity.ON_DEMAND
    changeover_s = pace.changeover_s or CHANGEOVER_S
    job = Job(aim.steps * pace.step_s, aim.deadline - aim.begun, changeover_s)
    moment = Moment(now - aim.begun, step * pace.step_s, Capacity.NONE, spot)
    return uniform_progress(job, moment, ASK_AGAIN_S)

"""Where a run's time went, from what it said of itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.events import Event


class Account(NamedTuple):
    """Where the time went, in seconds, and what came of it.

    useful: steps that count. lost: steps that had to be taken again. restart: from the last step before an interruption
    to the first of the next attempt, and the start. overhead: what snapshots and the like cost in between. waiting: too
    few nodes were there. They add up to all the time there was. `steps` count; `lost_steps` did not.
    """

    useful_s: float
    lost_s: float
    restart_s: float
    overhead_s: float
    waiting_s: float
    steps: float
    lost_steps: float
    restarts: int

    @property
    def total_s(self) -> float:
        """All the time there was."""
        return self.available_s + self.waiting_s

    @property
    def available_s(self) -> float:
        """The time in which enough nodes were there."""
        return self.useful_s + self.lost_s + self.restart_s + self.overhead_s

    @property
    def goodput(self) -> float:
        """The share of the available time that went into steps that count, 0 to 1."""
        return self.useful_s / self.available_s if self.available_s > 0 else 0.0


class Stretch(NamedTuple):
    """Steps without interruption: an attempt from its first step to its last.

    `begun_s` and `ended_s` are in Unix seconds, `world` counts ranks.
    """

    begun_s: float
    ended_s: float
    first: int
    last: int
    world: int


def stretches(events: Sequence[Event]) -> list[Stretch]:
    """Return the attempts of a run, in order of time, as far as they took steps."""
    found: list[Stretch] = []
    for event in sorted((e for e in events if e["event"] in ("attempt", "step")), key=lambda e: float(e["time"])):
        at, step = float(event["time"]), int(event["step"])
        if event["event"] == "attempt":
            found.append(Stretch(at, at, step, step, int(event["world"])))
        elif found and step > found[-1].last:
            found[-1] = found[-1]._replace(ended_s=at, last=step)
    return found


def account(
    runs: Sequence[Stretch],
    begun_s: float,
    ended_s: float,
    short: Sequence[tuple[float, float]],
    step_s: dict[int, float],
    done: int,
) -> Account:
    """Say where the time of a run went.

    Args:
        runs: what `stretches` found.
        begun_s: when the run was started, Unix seconds.
        ended_s: when it ended.
        short: intervals, Unix seconds, in which too few nodes were there.
        step_s: seconds of an undisturbed step, by ranks.
        done: steps that are committed in the end, or can be gone on from.
    """
    useful = lost = overhead = steps = lost_steps = 0.0
    restart = waiting = 0.0
    clock = begun_s
    for index, run in enumerate(runs):
        waited = overlap(short, clock, run.begun_s)
        waiting += waited
        restart += max(0.0, run.begun_s - clock) - waited
        kept_to = runs[index + 1].first if index + 1 < len(runs) else done
        kept = min(max(0, kept_to - run.first), run.last - run.first)
        taken = run.last - run.first
        seconds = min(step_s.get(run.world, 0.0), (run.ended_s - run.begun_s) / taken) if taken else 0.0
        useful, lost = useful + kept * seconds, lost + (taken - kept) * seconds
        steps, lost_steps = steps + kept, lost_steps + taken - kept
        overhead += max(0.0, run.ended_s - run.begun_s - taken * seconds)
        clock = max(clock, run.ended_s)
    waited = overlap(short, clock, ended_s)
    rest = max(0.0, ended_s - clock) - waited
    return Account(useful, lost, restart + rest, overhead, waiting + waited, steps, lost_steps, max(0, len(runs) - 1))


def overlap(intervals: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return how much of [begin, end] some intervals cover, which do not overlap each other."""
    return sum(max(0.0, min(end, b) - max(begin, a)) for a, b in intervals)

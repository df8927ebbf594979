"""A run on a spot trace as a discrete-event model. Pure; its time grows with the trace's changes, not with the steps.

Between two changes of membership training goes on at the rate that the step and the snapshots leave it. A loss takes
the run back to its newest recoverable state: in host memory, unless a node and the keeper of its copy (the next one)
are both gone; else in the store, as far as committed. Then it is detected, and the run restarts; losses meanwhile begin
the restart anew. Time with too few nodes is waited.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

from fgtrain.snapshot import interval
from launcher.rehearse.account import Account
from launcher.rehearse.costs import Costs, young_daly_s
from launcher.rehearse.slots import Moves


class Policy(NamedTuple):
    """How a run protects itself.

    interval_s: seconds between snapshots to the store; None: worked out from costs and failures as the run itself does.
    memory: it also keeps snapshots in host memory, with copies on the next node. memory_steps: every so many steps
    (None: as the run itself does). planned_joins: nodes join at a step boundary and nothing is lost; else a join is an
    interruption like any other. noticed: losses come with enough notice for a last snapshot.
    """

    interval_s: float | None = None
    memory: bool = True
    memory_steps: int | None = None
    planned_joins: bool = True
    noticed: bool = False


class Mark(NamedTuple):
    """How far a run is: steps, and the seconds that these took."""

    steps: float
    seconds: float


class Run:
    """The state of the model; `advance` and `change` take turns."""

    def __init__(self, costs: Costs, policy: Policy, least: int) -> None:
        self._costs, self._policy, self._least = costs, policy, least
        self._here: list[int] = []  # places with a node, rising
        self._ring: list[int] = []  # those that hold the newest snapshot in memory, each with a copy on the next
        self._gone: set[int] = set()  # lost since then
        self._now = self._ready = 0.0
        self._done = self._kept = self._stored = Mark(0.0, 0.0)  # so far; in memory; committed to the store
        self._trains = False
        self._since: float | None = None  # when the first attempt began
        self._worlds: list[int] = []  # nodes of each attempt
        self._lost = self._lost_steps = self._restart = self._overhead = self._waiting = 0.0

    # -- time passes ----------------------------------------------------------------------------------------------

    def advance(self, to_s: float) -> None:
        """Let time pass until the next change."""
        if len(self._here) < self._least:
            self._waiting += to_s - self._now
        else:
            ready = min(max(self._ready, self._now), to_s)
            self._restart += ready - self._now
            if to_s > ready:
                self._begin(ready)
                self._train(ready, to_s - ready)
        self._now = to_s

    def _begin(self, at_s: float) -> None:
        if not self._trains:
            self._trains = True
            self._worlds.append(len(self._here))
            self._since = at_s if self._since is None else self._since

    def _train(self, at_s: float, seconds: float) -> None:
        step_s = self._costs.step_at(len(self._here))
        period_s, every = self._period_s(at_s), self._memory_steps(at_s, step_s)
        rate = self._rate(step_s, period_s, every)
        began = self._done
        self._done = _further(began, rate * seconds, step_s)
        self._overhead += seconds * (1 - rate)
        if (committed := _multiple(seconds - self._costs.latency, period_s)) > 0:
            self._stored = _further(began, rate * committed, step_s)
        if every and rate > 0:  # a copy drains during the next step
            copied = _multiple(seconds - step_s, every * step_s / rate)
            if copied > 0:
                self._kept = _further(began, rate * copied, step_s)
                self._ring, self._gone = self._here.copy(), set()

    def _period_s(self, at_s: float) -> float:
        if self._policy.interval_s is not None:
            return self._policy.interval_s
        return young_daly_s(self._costs, self._mtbf_s(at_s))

    def _mtbf_s(self, at_s: float) -> float:
        """Return the mean time between failures as the run itself would take it."""
        running_s = at_s - (self._since if self._since is not None else at_s)
        return interval.mtbf_s(running_s, interval.failures(self._worlds))

    def _memory_steps(self, at_s: float, step_s: float) -> int:
        if not self._policy.memory:
            return 0
        if self._policy.memory_steps is not None:
            return self._policy.memory_steps
        return interval.memory_steps(self._costs.copy, step_s, self._mtbf_s(at_s))

    def _rate(self, step_s: float, period_s: float, every: int) -> float:
        """Return the share of the time that goes into steps."""
        copying = self._costs.copy / (every * step_s) if every else 0.0
        saving = (self._costs.stall + self._costs.drag * self._costs.latency) / period_s
        return max(0.0, 1 - saving) / (1 + copying)

    # -- nodes go and come ----------------------------------------------------------------------------------------

    def change(self, move: Moves) -> None:
        """Lose and gain nodes, now."""
        could_run = len(self._here) >= self._least
        lost = set(move.lost)
        before = self._here
        self._here = [p for p in before if p not in lost] if lost else before.copy()
        if lost:
            self._lose(lost)
        elif move.filled and self._trains:
            self._join(before)
        for place in move.filled:
            insort(self._here, place)
        if not could_run and len(self._here) >= self._least:
            takes = self._costs.restart if self._worlds else self._costs.start
            self._ready = max(self._ready, self._now + takes)

    def _lose(self, lost: set[int]) -> None:
        if self._trains and self._policy.noticed:  # a last snapshot, then all leave
            self._save()
            self._pause(self._costs.stall + self._costs.restart)
            return
        self._gone |= lost
        self._go_back(self._kept if self._survives() else self._stored)
        self._pause(self._costs.detect + self._costs.restart)

    def _join(self, before: list[int]) -> None:
        if not self._policy.planned_joins:
            self._go_back(self._stored)
            self._pause(self._costs.restart)
            return
        self._kept, self._ring, self._gone = self._done, before, set()
        self._pause(self._costs.join)

    def _save(self) -> None:
        self._kept = self._stored = self._done
        self._ring, self._gone = [], set()

    def _survives(self) -> bool:
        """Tell whether every share of the newest snapshot in memory is still on some node."""
        ring, gone = self._ring, self._gone
        for place in gone:
            at = bisect_left(ring, place)
            if at < len(ring) and ring[at] == place and ring[(at + 1) % len(ring)] in gone:
                return False
        return self._policy.memory

    def _go_back(self, to: Mark) -> None:
        to = max(to, self._stored)
        if to == self._stored:
            self._kept, self._ring, self._gone = to, [], set()
        self._lost += self._done.seconds - to.seconds
        self._lost_steps += self._done.steps - to.steps
        self._done = to

    def _pause(self, seconds: float) -> None:
        self._trains = False
        self._ready = self._now + seconds

    def account(self) -> Account:
        """Say where the time went."""
        return Account(
            useful_s=self._done.seconds,
            lost_s=self._lost,
            restart_s=self._restart,
            overhead_s=self._overhead,
            waiting_s=self._waiting,
            steps=self._done.steps,
            lost_steps=self._lost_steps,
            restarts=max(0, len(self._worlds) - 1),
        )


def _further(mark: Mark, seconds: float, step_s: float) -> Mark:
    return Mark(mark.steps + seconds / step_s, mark.seconds + seconds)


def _multiple(seconds: float, period_s: float) -> float:
    """Return the greatest multiple of a period up to `seconds`; 0 if there is none."""
    return math.floor(seconds / period_s) * period_s if seconds >= period_s else 0.0


def simulate(moves: Sequence[Moves], end_s: float, costs: Costs, policy: Policy, least: int) -> Account:
    """Run the model to the end of a trace; the run never finishes before.

    Args:
        moves: what happens to the run's places, in order of time.
        end_s: when the trace ends.
        costs: what things take.
        policy: how the run protects itself.
        least: with fewer nodes it waits.
    """
    run = Run(costs, policy, least)
    for move in moves:
        if move.at_s > end_s:
            break
        run.advance(move.at_s)
        run.change(move)
    run.advance(end_s)
    return run.account()


def optimum(moves: Sequence[Moves], end_s: float, costs: Costs, least: int, restart_s: float = 0.0) -> Account:
    """Return what a run could come to that knows all losses: a snapshot right before each, and none else.

    It pays a snapshot's stall for each loss, and `restart_s` to go on; nothing else costs it anything.
    """
    ideal = Costs(
        step=costs.step,
        stall=costs.stall,
        latency=0.0,
        drag=0.0,
        copy=0.0,
        detect=0.0,
        restart=restart_s,
        start=0.0,
        join=0.0,
    )
    oracle = Policy(interval_s=math.inf, memory=False, noticed=True)
    return simulate(moves, end_s, ideal, oracle, least)


def best_interval(
    moves: Sequence[Moves], end_s: float, costs: Costs, policy: Policy, least: int, tries: int = 60
) -> tuple[float, Account]:
    """Return the fixed interval that would have been best, in hindsight, and what comes of it.

    The intervals tried rise geometrically from a snapshot's own duration (but 1 s) to the trace's length.
    """
    low = min(max(1.0, costs.stall, costs.latency), end_s)
    ratio = (end_s / low) ** (1 / max(1, tries - 1))
    tried = [low * ratio**i for i in range(tries)]
    results = [(t, simulate(moves, end_s, costs, policy._replace(interval_s=t), least)) for t in tried]
    return max(results, key=lambda r: r[1].steps)

"""A rehearsal with real agents: a run on the local cluster whose nodes come and go as the trace says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from fgtrain.plan import World
from fgtrain.runstore import RunFile, RunStore
from launcher.display import Display
from launcher.events import Event
from launcher.outcome import Outcome
from launcher.rehearse.account import Account, account, stretches
from launcher.rehearse.costs import Costs, measured
from launcher.rehearse.replay import RehearsalCluster, Replay
from launcher.rehearse.slots import Moves, short_of
from launcher.supervision import KEY, Budget, Supervision
from launcher.supervisor import Supervisor

_PATIENT = Supervision(lost=Budget(tries=100_000, free=100_000))
"""Losses in compressed time are no sign of broken nodes, however few steps lie between them."""


class Rehearsed(NamedTuple):
    """What came of a rehearsal: how the run ended, where its time went, what things cost, how long it took."""

    outcome: Outcome
    account: Account
    costs: Costs
    took_s: float


class Recorder:
    """Shows events and keeps them."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Show one event of a run."""
        self.events.append(event)
        self._display(event)


def rehearse(
    run: RunFile,
    runs: RunStore,
    stage: RehearsalCluster,
    world: World,
    places: int,
    moves: Sequence[Moves],
    end_s: float,
    notice_s: float,
    display: Display,
) -> Rehearsed:
    """Run a registered run while its nodes come and go; nothing that was started is left running.

    Args:
        run: what to train.
        runs: its corner of a store.
        stage: where.
        world: on how many nodes, at least and at most.
        places: of `moves`: the most nodes that take part.
        moves: in real seconds from the start.
        end_s: when the trace ends; the run is then asked to stop, if it has not finished.
        notice_s: real seconds from the notice (SIGUSR1) to the kill; 0: no notice.
        display: shows what happens.
    """
    recorder = Recorder(display)
    nodes = stage.nodes(run.name, places)
    replay = Replay(stage, nodes, moves, end_s, notice_s, at_end=lambda: runs.write("stop", {"asked": time.time()}))
    runs.write(KEY, _PATIENT)
    supervisor = Supervisor(run, runs, stage.name, stage, world, recorder, None)
    replay.start()
    try:
        outcome = supervisor.supervise()
    finally:
        replay.stop()
    if replay.failed is not None:
        raise replay.failed
    return _conclude(run, runs, world, recorder.events, outcome, replay.begun, moves, end_s)


def _conclude(
    run: RunFile,
    runs: RunStore,
    world: World,
    events: Sequence[Event],
    outcome: Outcome,
    begun_s: float,
    moves: Sequence[Moves],
    end_s: float,
) -> Rehearsed:
    attempts = stretches(events)
    last_s = attempts[-1].ended_s - begun_s if attempts else 0.0
    took_s = last_s if outcome.state == "finished" else max(end_s, last_s)
    short = [(begun_s + a, begun_s + b) for a, b in short_of(moves, world.nodes, took_s)]
    costs = measured(events, world.gpus, begun_s=begun_s, short=short)
    by_rank = {nodes * world.gpus: s for nodes, s in costs.step.items()}
    done = run.plan.steps if outcome.state == "finished" else max(0, runs.newest_step())
    return Rehearsed(outcome, account(attempts, begun_s, begun_s + took_s, short, by_rank, done), costs, took_s)

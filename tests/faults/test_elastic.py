"""Worlds that shrink and grow: silent nodes are left behind, newcomers let in at a step boundary, spares step in."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fgtrain.runstore import Result, RunStore
from fgtrain.stores import open_store
from tests.testbed.gate import BEHIND_GATE, Gate
from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--gpus", "1", "--set", "epochs=5.3", "--set", "determinism=bits"),
    *("--set", "loader.workers=1", "--set", "snapshots.steps=8", "--detect", "5", *BEHIND_GATE),
)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def runs(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("elastic"), **gate.env)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, gate: Gate) -> str:
    gate.open()
    done = runs.call(*RECIPE, "--name", "undisturbed")
    assert done.returncode == 0, done.stderr
    return weights(runs, "undisturbed")


def weights(runs: Runs, name: str) -> str:
    """Return the digest of a run's last weights."""
    return RunStore(open_store(runs.store), name).read("result.json", Result).weights


def attempts(run: LiveRun) -> list[dict[str, Any]]:
    return [e for e in run.events() if e["event"] == "attempt"]


def tell_node(run: LiveRun, number: int, sig: signal.Signals) -> None:
    for pid in run.node(number):
        if pid != run.rendezvous():  # which on this cluster shares a node, and may outlive it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)


def test_silent_node_is_left_behind_and_let_in_again_without_losing_a_step(
    runs: Runs, gate: Gate, undisturbed: str
) -> None:
    gate.hold(10)
    with runs.start("grows", *RECIPE, "--nodes", "1:2", "--name", "grows") as run:
        run.wait_committed(8)
        gate.wait_reached(run, 10)
        before = wait_for(lambda: newest(run, world=2), "both train")
        tell_node(run, 1, signal.SIGSTOP)  # to the others it looks as if its cable were cut; no process has ended
        shrunk = wait_for(lambda: newest(run, world=1, after=before), "one goes on without the other")
        gate.hold(14)
        gate.wait_reached(run, 14, attempt=shrunk["attempt"])
        tell_node(run, 1, signal.SIGCONT)
        grown = gate.creep(14, lambda: newest(run, world=2, after=shrunk), "the other is let in")
        gate.open()
        assert run.wait() == 0, run.output()
        seen = run.events()
        wait_for(lambda: not run.all(), "every process of the run is gone", 240)
    assert shrunk["step"] >= 8
    taken = [e["step"] for e in seen[: seen.index(grown)] if e["event"] in ("step", "snapshot")]
    assert grown["step"] == max(taken), "who joins costs no step"
    assert grown["tier"] == "memory"
    assert weights(runs, "grows") == undisturbed
    why = {e["attempt"]: e["why"] for e in seen if e["event"] == "phases"}
    assert "silent" in why[shrunk["attempt"]]
    assert why[grown["attempt"]] == "nodes join"


def newest(run: LiveRun, world: int, after: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the newest attempt, if it is in a world of this size and later than another: a busy machine makes more."""
    last = max(attempts(run), key=lambda a: a["attempt"], default=None)
    fits = last and last["world"] == world and last["attempt"] > (after["attempt"] if after else 0)
    return last if fits else None


@pytest.mark.chaos
def test_warm_process_dies_worker_is_stopped_and_a_spare_steps_in(runs: Runs, undisturbed: str) -> None:
    with runs.start("spared", *RECIPE, "--nodes", "1", "--spares", "1", "--name", "spared") as run:
        run.wait_step(3)
        (worker,) = run.workers()
        first = run.node(0)
        leads = 0 if worker in first else 1  # the agent that came first
        os.kill(run.warm()[leads], signal.SIGKILL)  # and with it its worker
        run.wait_step(1, attempt=2)
        os.kill(run.workers()[0], signal.SIGSTOP)
        run.wait_step(1, attempt=3)
        tell_node(run, leads, signal.SIGSTOP)
        run.wait_snapshot(8)
        run.wait_step(1, attempt=4)
        assert run.wait() == 0, run.output()
        worlds = [a["world"] for a in attempts(run)]
        spare = [e for e in node_events(runs, 1 - leads) if '"attempt"' in e]
        wait_for(lambda: not run.all(), "every process of the run is gone", 240)
    assert worlds == [1, 1, 1, 1]
    assert len(spare) >= 1
    assert weights(runs, "spared") == undisturbed


@pytest.mark.chaos
def test_agents_cut_off_from_their_store_stop_their_workers_and_come_back(runs: Runs) -> None:
    longer = (*RECIPE, "--set", "epochs=20.3")  # ranks do not need that store: they go on until it is missed
    assert runs.call(*longer, "--name", "whole").returncode == 0
    with runs.start("cut", *longer, "--nodes", "2", "--name", "cut") as run:
        run.wait_step(3)
        agents = run.agents()
        os.kill(run.rendezvous(), signal.SIGSTOP)
        wait_for(lambda: not run.workers(), "the workers are gone", 240)
        os.kill(run.rendezvous(), signal.SIGCONT)
        run.wait_step(1, attempt=2)
        assert run.agents() == agents, "the same processes, begun anew"
        assert run.wait() == 0, run.output()
        wait_for(lambda: not run.all(), "every process of the run is gone", 240)
    assert weights(runs, "cut") == weights(runs, "whole")


def node_events(runs: Runs, number: int) -> list[str]:
    file = Path(runs.work) / "spared" / f"node{number}" / "events.jsonl"
    return file.read_text().splitlines() if file.exists() else []

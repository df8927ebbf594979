"""kill -9 of a worker and of a whole node: the run ends with exit 0 and the samples of a run that was left alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.testbed.gate import BEHIND_GATE, Gate
from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--nodes", "2", "--gpus", "1", *BEHIND_GATE),
    *("--set", "epochs=3.3", "--set", "loader.workers=1", "--set", "snapshots.steps=8"),
)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def runs(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("kills"), **gate.env)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, gate: Gate) -> str:
    gate.open()
    done = runs.call(*RECIPE, "--name", "undisturbed")
    assert done.returncode == 0, done.stderr
    return runs.samples("undisturbed")


def metrics(runs: Runs, name: str) -> list[int]:
    file = Path(runs.store.removeprefix("file://")) / "runs" / name / "metrics.jsonl"
    return [row["step"] for row in map(json.loads, file.read_text().splitlines()) if "loss" in row]


def assert_nothing_left(run: LiveRun) -> None:
    wait_for(lambda: not run.all(), "every process of the run is gone", 240)


def test_killed_worker_and_killed_node_change_nothing(runs: Runs, gate: Gate, undisturbed: str) -> None:
    gate.hold(10)
    with runs.start("killed", *RECIPE, "--name", "killed") as run:
        run.wait_committed(8)
        gate.wait_reached(run, 10)
        os.kill(run.workers()[1], signal.SIGKILL)
        gate.hold(30)
        gate.wait_reached(run, 30, attempt=2)
        os.killpg(run.agents()[0], signal.SIGKILL)
        gate.open()
        assert run.wait() == 0, run.output()
        attempts = [e for e in run.events() if e["event"] == "attempt"]
        assert_nothing_left(run)
    assert len(attempts) >= 3
    assert all(a["step"] > 0 for a in attempts[1:])
    assert runs.samples("killed") == undisturbed
    steps = metrics(runs, "killed")
    assert steps == list(range(1, max(steps) + 1))


def test_sigterm_to_one_worker_loses_no_step(runs: Runs, gate: Gate) -> None:
    gate.hold(5)
    recipe = [a if not a.startswith("snapshots") else "snapshots.steps=1000" for a in RECIPE]
    with runs.start("noticed", *recipe, "--name", "noticed") as run:
        gate.wait_reached(run, 5)
        os.kill(run.workers()[0], signal.SIGTERM)
        gate.open()
        assert run.wait() == 0, run.output()
        events = run.events()
    second = next(e for e in events if e["event"] == "attempt" and e["attempt"] == 2)
    before = [e["step"] for e in events[: events.index(second)] if e["event"] in ("step", "snapshot")]
    assert second["step"] == max(before) >= 5

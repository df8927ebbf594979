"""`determinism="bits"` through the command line: worlds, kills and loader workers leave the same weights."""

from __future__ import annotations

import os
import signal

import pytest

from tests.testbed.gate import BEHIND_GATE, Gate
from tests.testbed.runs import Runs

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--set", "determinism=bits", "--set", "epochs=1.6"),
    *("--set", "snapshots.steps=6", "--set", "snapshots.seconds=null", *BEHIND_GATE),
)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def runs(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("bits"), **gate.env)


def weights(runs: Runs, name: str) -> dict[int, str]:
    """Return the digest of each snapshot's weights by step."""
    return {s["step"]: s["weights"] for s in runs.json("snapshots", name)}


def assert_same(found: dict[int, str], alone: dict[int, str]) -> None:
    """Hold two runs to the same weights at their ends, and wherever both took a snapshot: a busy machine skips some."""
    common = found.keys() & alone.keys()
    assert len(common) >= 2, (found, alone)
    assert {step: found[step] for step in common} == {step: alone[step] for step in common}
    assert max(found) == max(alone)


@pytest.fixture(scope="module")
def alone(runs: Runs, gate: Gate) -> dict[int, str]:
    gate.open()
    done = runs.call(*RECIPE, "--nodes", "1", "--gpus", "1", "--set", "loader.workers=0", "--name", "alone")
    assert done.returncode == 0, done.stderr
    found = weights(runs, "alone")
    assert len(set(found.values())) == len(found) >= 2
    return found


def test_two_nodes_of_two_end_with_the_weights_of_one_process(runs: Runs, gate: Gate, alone: dict[int, str]) -> None:
    gate.open()
    done = runs.call(*RECIPE, "--nodes", "2", "--gpus", "2", "--name", "apart")
    assert done.returncode == 0, done.stderr
    assert_same(weights(runs, "apart"), alone)


def test_kills_and_changes_of_the_world_leave_the_same_weights(runs: Runs, gate: Gate, alone: dict[int, str]) -> None:
    gate.hold(8)
    with runs.start(
        "hurt", *RECIPE, "--nodes", "2", "--gpus", "1", "--set", "loader.workers=3", "--name", "hurt"
    ) as run:
        gate.wait_reached(run, 8)
        os.kill(run.workers()[1], signal.SIGKILL)
        gate.hold(14)
        gate.wait_reached(run, 14, attempt=2)
        run.kill_all()
    gate.hold(20)
    with runs.start("hurt", "resume", "hurt", "--nodes", "1", "--gpus", "1") as run:
        gate.wait_reached(run, 20, attempt=3)
        run.kill_all()
    gate.open()
    done = runs.call("resume", "hurt", "--nodes", "1", "--gpus", "3")
    assert done.returncode == 0, done.stderr
    worlds = [e["world"] for e in run.events() if e["event"] == "attempt"]
    assert worlds == [2, 2, 1, 3]
    assert_same(weights(runs, "hurt"), alone)

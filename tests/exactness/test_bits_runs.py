"""`determinism="bits"` through the command line: worlds, kills and loader workers leave the same weights."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--set", "determinism=bits", "--set", "epochs=1.6"),
    *("--set", "snapshots.steps=6", "--set", "snapshots.seconds=null"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("bits"))


def weights(runs: Runs, name: str) -> dict[int, str]:
    """Return the digest of each snapshot's weights by step."""
    return {s["step"]: s["weights"] for s in runs.json("snapshots", name)}


@pytest.fixture(scope="module")
def alone(runs: Runs) -> dict[int, str]:
    done = runs.call(*RECIPE, "--nodes", "1", "--gpus", "1", "--set", "loader.workers=0", "--name", "alone")
    assert done.returncode == 0, done.stderr
    found = weights(runs, "alone")
    assert len(set(found.values())) == len(found) >= 6
    return found


def test_two_nodes_of_two_end_with_the_weights_of_one_process(runs: Runs, alone: dict[int, str]) -> None:
    done = runs.call(*RECIPE, "--nodes", "2", "--gpus", "2", "--name", "apart")
    assert done.returncode == 0, done.stderr
    assert weights(runs, "apart") == alone


def kill(run: LiveRun) -> None:
    """Kill the launcher and with it everything: a machine that goes away."""
    run.process.kill()
    run.process.wait(240)

    def gone() -> bool:
        left = run.all()  # what was being started when the others died is found next time
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for(gone, "every process of the run is gone", 240)


def test_kills_and_changes_of_the_world_leave_the_same_weights(runs: Runs, alone: dict[int, str]) -> None:
    with runs.start(
        "hurt", *RECIPE, "--nodes", "2", "--gpus", "1", "--set", "loader.workers=3", "--name", "hurt"
    ) as run:
        run.wait_step(8)
        os.kill(run.workers()[1], signal.SIGKILL)
        run.wait_step(14, attempt=2)
        kill(run)
    with runs.start("hurt", "resume", "hurt", "--nodes", "1", "--gpus", "1") as run:
        run.wait_step(20, attempt=3)
        kill(run)
    done = runs.call("resume", "hurt", "--nodes", "1", "--gpus", "3")
    assert done.returncode == 0, done.stderr
    worlds = [e["world"] for e in run.events() if e["event"] == "attempt"]
    assert worlds == [2, 2, 1, 3]
    hurt = weights(runs, "hurt")  # a snapshot that only host memory had when its attempt died was never committed
    assert hurt == {step: alone[step] for step in hurt}
    assert max(hurt) == max(alone)

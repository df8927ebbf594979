"""Workers that DeepSpeed's launcher starts: killed, stopped, asked to leave, in worlds that shrink and grow."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fgtrain.pulse import FILE, Beat, alive, decode
from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [
    pytest.mark.train,
    pytest.mark.chaos,
    pytest.mark.timeout(1200),  # each attempt imports torch and DeepSpeed anew, three times over
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed: scripts/install train deepspeed",
    ),
]

RECIPE = (
    *("recipes/quickstart.py", "--strategy", "zero2", "--set", "epochs=4", "--set", "batch.micro=8"),
    *("--set", "optim.lr=1e-3", "--set", "snapshots.steps=8", "--set", "snapshots.seconds=null", "--detect", "5"),
)
STEPS = 90
TOLERANCE = 0.02
"""Of the loss of any step, relative to torchrun's: sums of floats go in another order in another world."""


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[int, float]]:
    runs = Runs(tmp_path_factory.mktemp("torchrun"))
    done = runs.call(*RECIPE, "--gpus", "2", "--name", "run")
    assert done.returncode == 0, done.stderr
    return sorted(runs.samples("run").splitlines()), losses(runs)


def losses(runs: Runs) -> dict[int, float]:
    """Return the committed loss of each step."""
    lines = (runs.folder / "store" / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


def ranks(live: LiveRun, runs: Runs, node: int) -> list[Beat]:
    """Return the living workers of a node, by local rank."""
    file = runs.work / live.name / f"node{node}" / FILE
    return [b for b in decode(file.read_bytes()) if alive(b)] if file.exists() else []


def launchers(live: LiveRun) -> list[int]:
    """Return the processes by which DeepSpeed starts a node's workers and looks after them."""
    return [pid for pid in live.all() if b"deepspeed.launcher.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def attempts(live: LiveRun) -> list[dict[str, Any]]:
    return [e for e in live.events() if e["event"] == "attempt"]


def assert_the_same(runs: Runs, by_torchrun: tuple[list[str], dict[int, float]]) -> None:
    """Compare a finished run with torchrun's, and see that nothing of it is left."""
    samples, whole = by_torchrun
    ours = losses(runs)
    assert sorted(runs.samples("run").splitlines()) == samples
    assert sorted(ours) == list(range(1, STEPS + 1))
    worst = max(ours, key=lambda s: abs(ours[s] - whole[s]) / whole[s])
    assert abs(ours[worst] - whole[worst]) <= TOLERANCE * whole[worst], (worst, ours[worst], whole[worst])
    wait_for(lambda: not runs.processes(), "every process of the run is gone")


def test_killed_worker_stopped_worker_and_killed_launcher_cost_an_attempt_each(
    runs: Runs, by_torchrun: tuple[list[str], dict[int, float]]
) -> None:
    with runs.start("run", *RECIPE, "--gpus", "2", "--engine", "deepspeed", "--name", "run") as live:
        live.wait_snapshot(8)
        assert (runs.work / "run" / "node0" / "hostfile").read_text() == "node0 slots=2\n"
        assert len(launchers(live)) == 1
        os.kill(ranks(live, runs, 0)[1].pid, signal.SIGKILL)
        live.wait_step(20, attempt=2)
        os.kill(ranks(live, runs, 0)[0].pid, signal.SIGSTOP)
        live.wait_step(40, attempt=3)
        os.kill(launchers(live)[0], signal.SIGKILL)
        live.wait_step(60, attempt=4)
        assert live.wait() == 0, live.output()
        assert [a["world"] for a in attempts(live)] == [2, 2, 2, 2]
        assert attempts(live)[1]["tier"] == "memory"
        assert "SIGKILL" in live.output()
    assert_the_same(runs, by_torchrun)


def test_world_of_two_launchers_shrinks_when_a_node_goes_and_grows_when_it_is_back(
    runs: Runs, by_torchrun: tuple[list[str], dict[int, float]]
) -> None:
    with runs.start("run", *RECIPE, "--nodes", "1:2", "--engine", "deepspeed", "--name", "run") as live:
        live.wait_step(4)
        assert (runs.work / "run" / "node0" / "hostfile").read_text() == "node0 slots=1\nnode1 slots=1\n"
        gone = [pid for pid in live.node(1) if pid != live.rendezvous()]
        for pid in gone:
            os.kill(pid, signal.SIGSTOP)
        live.wait_step(1, attempt=2)
        for pid in gone:
            os.kill(pid, signal.SIGCONT)
        live.wait_step(1, attempt=3)
        assert live.wait() == 0, live.output()
        first, second, third = attempts(live)
        assert (first["world"], second["world"], third["world"]) == (2, 1, 2)
        why = {e["attempt"]: e["why"] for e in live.events() if e["event"] == "phases"}
    assert why[3] == "nodes join"
    assert_the_same(runs, by_torchrun)


def test_interrupted_run_takes_a_last_snapshot_and_is_resumed_by_torchrun(
    runs: Runs, by_torchrun: tuple[list[str], dict[int, float]]
) -> None:
    with runs.start("run", *RECIPE, "--gpus", "2", "--engine", "deepspeed", "--name", "run") as live:
        live.wait_step(10)
        assert runs.call("stop", "run").returncode == 0
        assert live.wait() == 0, live.output()
        last = max(e["step"] for e in live.events() if e["event"] in ("step", "snapshot"))
        assert last == max(e["step"] for e in live.events() if e["event"] == "snapshot")
    done = runs.call("resume", "run", "--engine", "torchrun")
    assert done.returncode == 0, done.stderr
    assert_the_same(runs, by_torchrun)

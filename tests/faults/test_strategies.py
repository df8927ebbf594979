"""Sharded runs: killed, resumed in other worlds, and gone on with under other strategies."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest

from tests.testbed.gate import BEHIND_GATE_FSDP, Gate
from tests.testbed.runs import Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

TOLERANCE = 0.02
"""Of the loss of any step, relative to the uninterrupted run's: sums of floats go in another order."""

SMALL = (
    "recipes/quickstart.py",
    "--set",
    "epochs=1.5",
    "--set",
    "snapshots.steps=4",
    "--set",
    "snapshots.seconds=null",
)
SMALL += ("--set", "optim.lr=1e-3", "--set", "batch.micro=8")
STEPS = 34
UNITS = ("--set", "strategy.unit=5000")  # else so small a network is one unit


def options(strategy: str) -> tuple[str, ...]:
    """What a run is started with; skips where DeepSpeed is not installed."""
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: scripts/install train deepspeed")
    return ("--strategy", strategy, *(UNITS if strategy == "fsdp" else ()))


def losses(runs: Runs, run: str) -> dict[int, float]:
    """Return the committed loss of each step."""
    lines = (Path(runs.store.removeprefix("file://")) / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


def assert_agree(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert sorted(ours) == sorted(theirs) == list(range(1, STEPS + 1))
    worst = max(ours, key=lambda s: abs(ours[s] - theirs[s]) / theirs[s])
    assert abs(ours[worst] - theirs[worst]) <= TOLERANCE * theirs[worst], (worst, ours[worst], theirs[worst])


def test_sharded_run_that_is_killed_goes_on_whole_in_another_world(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    runs = Runs(tmp_path, **gate.env)
    gate.hold(10)
    with runs.start("shards", *SMALL, *BEHIND_GATE_FSDP, *UNITS, "--nodes", "2", "--name", "shards") as live:
        live.wait_committed(4)
        gate.wait_reached(live, 10)
        live.kill_all()
    done = runs.call("resume", "shards", "--nodes", "1", "--strategy", "ddp")
    assert done.returncode == 0, done.stderr
    assert len(losses(runs, "shards")) == STEPS
    steps = [json.loads(line)["step"] for line in runs.samples("shards").splitlines()]
    assert sorted(steps) == [s for s in range(STEPS) for _ in range(8)]
    verified = runs.call("snapshots", "verify", "shards")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    wait_for(lambda: not runs.processes(), "every process of the run is gone")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, float]]:
    runs = Runs(tmp_path_factory.mktemp("whole"))
    done = runs.call(*SMALL, "--nodes", "2", "--name", "whole")
    assert done.returncode == 0, done.stderr
    return runs.samples("whole"), losses(runs, "whole")


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero2", "zero3"])
def test_sharded_run_survives_kills_and_other_worlds_with_the_same_losses(
    strategy: str, tmp_path: Path, uninterrupted: tuple[str, dict[int, float]]
) -> None:
    runs = Runs(tmp_path)
    with runs.start("run", *SMALL, *options(strategy), "--nodes", "2", "--name", "run") as live:
        live.wait_step(6)
        os.kill(live.workers()[1], signal.SIGKILL)  # comes back from memory
        live.wait_step(10, attempt=2)
        live.wait_snapshot(12)
        live.kill_all()
    with runs.start("run", "resume", "run", "--nodes", "3") as live:
        live.wait_snapshot(20)
        live.kill_all()
    done = runs.call("resume", "run", "--nodes", "1")
    assert done.returncode == 0, done.stderr
    samples, whole = uninterrupted
    assert sorted(runs.samples("run").splitlines()) == sorted(samples.splitlines())
    assert_agree(losses(runs, "run"), whole)
    assert runs.call("snapshots", "verify", "run").returncode == 0
    wait_for(lambda: not runs.processes(), "every process of the run is gone")


@pytest.mark.chaos
@pytest.mark.parametrize("before, after", [("zero2", "ddp"), ("ddp", "fsdp"), ("fsdp", "zero3"), ("zero3", "zero1")])
def test_strategy_is_changed_in_mid_run(
    before: str, after: str, tmp_path: Path, uninterrupted: tuple[str, dict[int, float]]
) -> None:
    options(after)
    runs = Runs(tmp_path)
    with runs.start("run", *SMALL, *options(before), "--nodes", "2", "--name", "run") as live:
        live.wait_snapshot(12)
        live.kill_all()
    done = runs.call("resume", "run", "--strategy", after)
    assert done.returncode == 0, done.stderr
    samples, whole = uninterrupted
    assert sorted(runs.samples("run").splitlines()) == sorted(samples.splitlines())
    assert_agree(losses(runs, "run"), whole)
    wait_for(lambda: not runs.processes(), "every process of the run is gone")


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_sharded_world_shrinks_when_a_node_is_lost_and_grows_when_it_is_back(
    strategy: str, tmp_path: Path, uninterrupted: tuple[str, dict[int, float]]
) -> None:
    runs = Runs(tmp_path)
    elastic = ("--nodes", "1:2", "--detect", "5", "--name", "run")
    with runs.start("run", *SMALL, *options(strategy), *elastic) as live:
        live.wait_snapshot(4)
        gone = [pid for pid in live.node(1) if pid != live.rendezvous()]
        for pid in gone:
            os.kill(pid, signal.SIGSTOP)  # to the other it looks as if its cable were cut
        live.wait_step(1, attempt=2)
        for pid in gone:
            os.kill(pid, signal.SIGCONT)
        live.wait_step(1, attempt=3)
        assert live.wait() == 0, live.output()
        seen = live.events()
    first, second, third = [e for e in seen if e["event"] == "attempt"]
    assert (first["world"], second["world"], third["world"]) == (2, 1, 2)
    before = [e["step"] for e in seen[: seen.index(third)] if e["event"] in ("step", "snapshot")]
    assert third["step"] == max(before), "who joins costs no step"
    samples, whole = uninterrupted
    assert sorted(runs.samples("run").splitlines()) == sorted(samples.splitlines())
    assert_agree(losses(runs, "run"), whole)
    assert runs.call("snapshots", "verify", "run").returncode == 0
    wait_for(lambda: not runs.processes(), "every process of the run is gone")

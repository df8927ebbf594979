"""The launcher is interrupted, or killed: what it started goes, nothing else does, and the run goes on where it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.gate import BEHIND_GATE, Gate
from tests.testbed.runs import LiveRun, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--nodes", "2", "--set", "epochs=3", "--set", "evaluate.micro=512"),
    *("--set", "evaluate.every_epochs=3", "--set", "loader.workers=1"),
    *("--set", "snapshots.steps=10", "--set", "snapshots.seconds=null", *BEHIND_GATE),
)
GONE_S = 240.0  # a bound, not the promise: on a busy machine everything takes longer


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def runs(tmp_path: Path, gate: Gate) -> Iterator[Runs]:
    (tmp_path / "tmp").mkdir()
    runs = Runs(tmp_path, FGLAUNCH_MEMORY=str(tmp_path / "memory"), TMPDIR=str(tmp_path / "tmp"), **gate.env)
    yield runs
    runs.end()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process beside the run, in the launcher's own shape: a Python program of this user."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True) as process:
        yield process
        process.kill()


@contextlib.contextmanager
def in_full_flow(runs: Runs, gate: Gate, name: str) -> Iterator[LiveRun]:
    """A run with a snapshot behind it, past which it has got; it goes no further until the block ends."""
    gate.hold(12)
    with runs.start(name, *RECIPE, "--name", name) as run:
        run.wait_committed(10)
        gate.wait_reached(run, 12)
        assert len(run.agents()) == 2
        yield run
    gate.open()


def left_behind(runs: Runs) -> list[str]:
    """Return what is in the temporary folder and in host memory, but for PyTorch's cache of compiled kernels."""
    found = [p for f in ("tmp", "memory") for p in (runs.folder / f).iterdir()]
    return [str(p) for p in found if not p.name.startswith("torchinductor_")]


def finishes(runs: Runs, name: str, *args: str) -> None:
    done = runs.call("resume", name, *args)
    assert done.returncode == 0, done.stderr
    assert f"run {name} finished" in done.stderr.splitlines()[-1]
    assert "attempt 1:" not in done.stderr
    assert "from the start" not in done.stderr
    [row] = [r for r in runs.json("ps") if r["run"] == name]
    assert (row["state"], row["step"]) == ("finished", row["steps"])
    assert left_behind(runs) == []


def test_interrupt_ends_everything_that_was_started_and_nothing_else(
    runs: Runs, gate: Gate, bystander: subprocess.Popen[bytes]
) -> None:
    with in_full_flow(runs, gate, "interrupted") as run:
        run.process.send_signal(signal.SIGINT)
        gate.creep(12, lambda: run.process.poll() is not None, "it ends at a step boundary")
        assert run.wait() == 130
        assert run.all() == []
        assert runs.processes() == []
        assert "interrupted; `fglaunch resume interrupted" in run.output().splitlines()[-1]
        assert "Traceback" not in run.output()
    assert bystander.poll() is None
    assert runs.json("ps")[0]["state"] == "stopped"
    finishes(runs, "interrupted", "--nodes", "1", "--gpus", "3")


@pytest.mark.chaos
def test_killed_launcher_takes_everything_with_it(runs: Runs, gate: Gate, bystander: subprocess.Popen[bytes]) -> None:
    with in_full_flow(runs, gate, "killed") as run:
        os.kill(run.process.pid, signal.SIGKILL)
        wait_for(lambda: runs.processes() == [], "agents and workers leave by themselves", GONE_S)
        assert run.wait() == -signal.SIGKILL
    assert bystander.poll() is None
    assert runs.json("ps")[0]["state"] == "lost"
    assert runs.call("attach", "killed").returncode == 1
    finishes(runs, "killed")


def test_launcher_killed_while_agents_start_leaves_none(runs: Runs, gate: Gate) -> None:
    """The agents have not yet tied their lives to the launcher's: they must notice that it is gone already."""
    gate.hold(1)
    with runs.start("early", *RECIPE, "--name", "early") as run:
        wait_for(lambda: len(run.all()) >= 3, "the agents are there")
        os.kill(run.process.pid, signal.SIGKILL)
        wait_for(lambda: runs.processes() == [], "agents leave by themselves", GONE_S)

"""Programs that are stopped for good, not killed: a whole node, and workers, forked or started from scratch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.testbed.runs import Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.chaos, pytest.mark.timeout(900)]

RECIPE = (
    *("recipes/quickstart.py", "--gpus", "1", "--set", "epochs=300", "--set", "loader.workers=1"),
    *("--set", "snapshots.steps=8", "--supervise", "silent_s=15"),
)


@pytest.mark.parametrize("nodes", ["1:2", "2"])
def test_node_that_stays_silent_gets_a_new_agent_and_takes_part_again(runs: Runs, nodes: str) -> None:
    with runs.start("silent", *RECIPE, "--nodes", nodes, "--name", "silent") as run:
        run.wait_step(4)
        first = run.agents()
        stopped = [pid for pid in run.node(1) if pid != run.rendezvous()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: set(run.agents()) - set(first), "another agent is started")
        wait_for(lambda: not set(run.agents()) & {first[1]}, "the silent one is gone")
        run.wait_step(1, attempt=3 if ":" in nodes else 2)
        assert run.agents()[0] == first[0], "who stays is left alone"
        assert runs.call("stop", "silent").returncode == 0
        run.wait()
        said = run.output()
        wait_for(lambda: not run.all(), "every process of the run is gone", 60)
    assert "lost: node1 silent for " in said
    assert "lost: node1 was silent for " in said
    assert "hangs" not in said


@pytest.mark.parametrize("cold", ["", "1"])
def test_worker_that_is_stopped_is_killed_cold_and_warm(tmp_path: Path, cold: str) -> None:
    runs = Runs(tmp_path, FGLAUNCH_COLD=cold)
    with runs.start("stopped", *RECIPE, "--nodes", "2", "--name", "stopped") as run:
        run.wait_step(4)
        assert bool(run.warm()) != bool(cold)
        [_, worker] = run.workers()
        os.kill(worker, signal.SIGSTOP)
        run.wait_step(1, attempt=2)
        assert worker not in run.workers()
        assert runs.call("stop", "stopped").returncode == 0
        run.wait()
        assert "is stopped: killed" in (runs.work / "stopped" / "node1" / "agent.log").read_text()

"""Supervision of real runs: a stopped worker is replaced, a killed supervisor and one too many harm nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from fgtrain.pulse import FILE, Phase, decode
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.takeover import last_term, take_office
from tests.testbed.runs import Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--nodes", "2", "--gpus", "1", "--set", "loader.workers=0"),
    *("--set", "epochs=4", "--set", "evaluate.every_epochs=0", "--set", "evaluate.micro=512"),
    *("--set", "snapshots.steps=10", "--set", "snapshots.seconds=null"),
)


def pulse(runs: Runs, run: str, node: int) -> int:
    """Return the process that takes steps on a node, from its pulse."""

    def steps() -> int | None:
        file = runs.work / run / f"node{node}" / FILE
        beats = decode(file.read_bytes()) if file.exists() else []
        return next((b.pid for b in beats if b.phase is Phase.STEP), None)

    return int(wait_for(steps, f"node{node} takes steps"))


@pytest.mark.chaos
def test_stopped_worker_is_noticed_named_and_replaced(runs: Runs) -> None:
    runs.env["FGLAUNCH_COLD"] = "1"  # a warm process notices sooner that its child is stopped
    # Else its agent kills it first, as it does with what is stopped for that long.
    quick = ("--supervise", "watchdog.floor_s=8", "--supervise", "watchdog.factor=5", "--detect", "100")
    with runs.start("frozen", *RECIPE, *quick, "--name", "frozen") as run:
        run.wait_step(12)
        os.kill(pulse(runs, "frozen", 1), signal.SIGSTOP)
        assert run.wait() == 0, run.output()
        output = run.output()
    assert "rank 1 on node1 hangs (step " in output
    assert "hang: rank 1 on node1 hangs" in output
    assert "run frozen finished" in output.splitlines()[-1]
    logs = [f.read_text() for f in (runs.work / "frozen").glob("node0/logs/00001-*.log")]
    assert any("most recent call first" in text for text in logs)  # who waited says where


def test_supervisor_that_finds_another_leaves_the_run_to_it(runs: Runs) -> None:
    """On this machine agents end with their supervisor, so that the other starts them anew."""
    with runs.start("two", *RECIPE, "--set", "epochs=1000", "--name", "two") as run:
        run.wait_snapshot(10)
        store = RunStore(open_store(runs.store), "two")
        earlier = last_term(store)
        assert earlier is not None
        assert earlier.pid == run.process.pid
        take_office(store, "local", earlier.world)
        assert run.wait(240) == 3
        assert run.all() == []
        last = run.output().splitlines()[-1]
        assert last.startswith("two: supervisor 2 on ")
        assert "has taken over; `fglaunch attach two" in last
        assert runs.json("ps")[0]["state"] == "lost"  # nothing was written over what the other has to say


@pytest.mark.chaos
def test_of_two_that_resume_a_lost_run_one_goes_on(runs: Runs) -> None:
    with runs.start("lost", *RECIPE, "--name", "lost") as run:
        run.wait_snapshot(10)
        os.kill(run.process.pid, signal.SIGKILL)
        wait_for(lambda: runs.processes() == [], "agents and workers leave", 240)
    done: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: done.append(runs.call("resume", "lost"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(400)
    codes = sorted(d.returncode for d in done)
    # Refused, since the other was there already; fenced; or so late that the work was done.
    assert codes in ([0, 2], [0, 3], [0, 0]), "\n----\n".join(d.stderr for d in done)
    assert runs.processes() == []
    assert runs.json("ps")[0]["state"] == "finished"

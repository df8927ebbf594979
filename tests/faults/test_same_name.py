"""Two runs of one name, in different stores, on one machine: the second one never goes on with what is the first's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.testbed.runs import Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--name", "base", "--set", "loader.workers=0", "--set", "epochs=1000"),
    *("--set", "snapshots.steps=100000", "--set", "snapshots.seconds=null", "--set", "snapshots.memory_steps=1"),
)


def test_new_run_begins_anew_beside_and_after_one_of_the_same_name(tmp_path: Path) -> None:
    first, second = Runs(tmp_path, f"file://{tmp_path}/first"), Runs(tmp_path, f"file://{tmp_path}/second")
    with first.start("base", *RECIPE) as run:
        run.wait_step(4)
        refused = second.call(*RECIPE, "--set", "seed=7")
        assert refused.returncode == 2
        why = f"a run called base, of file://{tmp_path}/first, is at work there: choose another --name"
        assert why in refused.stderr
        assert not (tmp_path / "second" / "runs").exists()
        run.wait_step(max(e["step"] for e in run.events() if e["event"] == "step") + 2)  # unharmed
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(240)
        wait_for(lambda: not run.agents() and not run.workers(), "the agents have gone after it")
        first.end()
        wait_for(lambda: not first.processes(), "nothing is left of it")
    assert list((tmp_path / "memory").glob("base-*/*/*/*.json")), "it has left a state in memory"
    with second.start("base", *RECIPE, "--set", "seed=7") as run:
        wait_for(lambda: (tmp_path / "second/runs/base/attempts/00001.json").exists(), "what it sees is its own by now")
        run.wait_step(2)
        begun = [e for e in run.events() if e["event"] == "attempt"]
        assert [(e["attempt"], e["step"], e["tier"]) for e in begun] == [(1, 0, "")]
        assert len(list((tmp_path / "memory").glob("base-*/*"))) == 1, "what the first had left is gone"
    second.end()

"""A run whose store is full, from the command line: `snapshots.fail_after` ends it with one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.testbed.runs import Runs
from tests.testbed.small_disk import small_disk

MIB = 1 << 20


@pytest.mark.train
@pytest.mark.timeout(600)
def test_run_that_may_not_go_on_without_snapshots_says_why_it_ends(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * MIB) as disk:
        runs = Runs(tmp_path, store=f"file://{disk.folder}/store")
        recipe = ("recipes/quickstart.py", "--nodes", "1", "--gpus", "1", "--set", "loader.workers=0")
        when = ("--set", "snapshots.steps=3", "--set", "snapshots.fail_after=2", "--set", "epochs=1000")
        with runs.start("full", *recipe, *when, "--name", "full") as run:
            run.wait_snapshot(3)
            disk.fill()
            assert run.wait() == 2, run.output()
            output = run.output()
    [line] = [line for line in output.splitlines() if line.startswith("full failed: ")]
    assert re.search(r"\d+ snapshots in a row failed \(snapshots.fail_after=2\), the last: ", line)
    assert "the disk is full" in line
    assert "Traceback" not in output


def test_arena_of_one_slot_is_refused(tmp_path: Path) -> None:
    done = Runs(tmp_path).call("recipes/quickstart.py", "--set", "snapshots.slots=1", "--dry-run")
    assert done.returncode == 2
    assert "snapshots.slots=1" in done.stderr

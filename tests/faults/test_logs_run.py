"""What ranks say before they crash arrives in the store, and is read from a machine that has nothing but the store."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.runs import FGLAUNCH, ROOT, Runs, wait_for
from tests.testbed.s3 import S3Server

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

RECIPE = (
    *("recipes/quickstart.py", "--nodes", "2", "--gpus", "1", "--set", "epochs=1000", "--set", "loader.workers=0"),
    *("--set", "evaluate.every_epochs=0"),
)
CRASH = "Fatal Python error: Segmentation fault"


@pytest.fixture
def runs(tmp_path: Path, seaweedfs: S3Server) -> Iterator[Runs]:
    runs = Runs(tmp_path, f"s3://{seaweedfs.bucket}/{tmp_path.name}", **seaweedfs.env)
    yield runs
    runs.end()


def test_last_lines_before_a_crash_are_followed_from_another_machine(runs: Runs, tmp_path: Path) -> None:
    elsewhere = runs.env | {"FGLAUNCH_WORK": str(tmp_path / "elsewhere")}
    followed = tmp_path / "followed"
    with runs.start("crash", *RECIPE, "--name", "crash") as run, followed.open("wb") as out:
        run.wait_step(3)
        command = [*FGLAUNCH, "logs", "crash", "-f", "--rank", "1", "--attempt", "1"]  # soon it is not the newest
        with subprocess.Popen(command, stdout=out, env=elsewhere, cwd=ROOT) as follower:
            os.kill(run.workers()[1], signal.SIGSEGV)
            wait_for(lambda: CRASH in followed.read_text(), "the last lines are there", 240)
            run.process.send_signal(signal.SIGINT)
            assert run.wait() == 130, run.output()
            assert follower.wait(240) == 0  # it ends with the run
    seen = followed.read_text()
    assert seen.startswith("--- attempt 1, rank 1\n")
    assert seen.count(CRASH) == 1
    here = runs.call("logs", "crash", "--attempt", "1", "--rank", "1")
    assert CRASH in here.stdout
    agents = subprocess.run(
        [*FGLAUNCH, "logs", "crash", "--agents"], env=elsewhere, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert "--- agent of node1" in agents.stdout
    assert "failed (exitcode: -11)" in agents.stdout

"""The job that holds a run's programs."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import _sky_holder
from tests.testbed.runs import wait_for

HOLDER = (sys.executable, str(Path(_sky_holder.__file__)))
ORPHAN = "import os, time; os.fork() and os._exit(0); os.setsid(); os.closerange(0, 3); time.sleep({})"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux adopts orphans on request")


class Job:
    """A holder, and the way in."""

    def __init__(self, folder: Path, idle_s: float) -> None:
        self.name = f"test-{secrets.token_hex(3)}"
        self.log = folder / "log"
        (folder / "scancel").write_text(f"#!/bin/sh\necho $* >{folder}/cancelled\n")
        (folder / "scancel").chmod(0o755)
        env = os.environ | {"SKYPILOT_NODE_RANK": "0", "SLURM_JOB_ID": "42", "PATH": f"{folder}:{os.environ['PATH']}"}
        with self.log.open("wb") as log:
            argv = [*HOLDER, "serve", self.name, str(idle_s)]
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    def python(self, *argv: str, said: bytes = b"") -> bytes:
        done = subprocess.run([*HOLDER, "python", self.name, "0", *argv], input=said, capture_output=True, timeout=240)
        assert done.stderr == b""
        return done.stdout


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path, idle_s=0.5)
    yield job
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGKILL)
    job.process.wait(240)
    _sky_holder.socket_file(job.name, "0").unlink(missing_ok=True)


def test_python_runs_in_the_job_on_the_streams_of_whoever_asks(job: Job) -> None:
    source = "import os, sys; print(sys.stdin.read() + os.environ['SLURM_JOB_ID'])"
    assert job.python("-c", source, said=b"answer: ") == b"answer: 42\n"


def test_job_lasts_while_anything_runs_and_gives_its_allocation_back(job: Job, tmp_path: Path) -> None:
    job.python("-c", ORPHAN.format(2))
    assert job.python("-c", "print('still there')") == b"still there\n"
    assert wait_for(lambda: job.process.poll() is not None, "the job ends", 240)
    assert job.process.returncode == 0
    assert (tmp_path / "cancelled").read_text() == "42\n"
    assert not _sky_holder.socket_file(job.name, "0").exists()


def test_host_whose_rank_is_another_finds_the_only_job_there(job: Job) -> None:
    argv = [*HOLDER, "python", job.name, "3", "-c", "print('found')"]
    job.python("-c", "pass")
    assert subprocess.run(argv, capture_output=True, timeout=240).stdout == b"found\n"


def test_job_that_is_not_there_is_told() -> None:
    argv = [*HOLDER, "python", "no-such-job", "0", "-c", "pass"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith("the job no-such-job does not run here")

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
IDLE_S = 0.5
ORPHAN = """
import os, sys, time
os.fork() and os._exit(0)
os.setsid()
os.closerange(0, 3)
while not os.path.exists(sys.argv[1]): time.sleep(0.1)
"""
GUARDED = '(until [ -e "$0/alone" ]; do sleep 0.1; done) & exec "$@"'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux adopts orphans on request")


class Job:
    """A holder, and the way in. It is not idle before there is a file `alone`: a child of its own sees to that."""

    def __init__(self, folder: Path) -> None:
        self.name = f"test-{secrets.token_hex(3)}"
        self.folder = folder
        (folder / "scancel").write_text(f"#!/bin/sh\necho $* >{folder}/cancelled\n")
        (folder / "scancel").chmod(0o755)
        env = os.environ | {"SKYPILOT_NODE_RANK": "0", "SLURM_JOB_ID": "42", "PATH": f"{folder}:{os.environ['PATH']}"}
        with (folder / "log").open("wb") as log:
            argv = ["/bin/sh", "-c", GUARDED, str(folder), *HOLDER, "serve", self.name, str(IDLE_S)]
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: b"ready" in (folder / "log").read_bytes(), "the job is ready")

    def python(self, *argv: str, said: bytes = b"") -> bytes:
        done = subprocess.run([*HOLDER, "python", self.name, "0", *argv], input=said, capture_output=True, timeout=240)
        assert done.stderr == b""
        return done.stdout

    def end(self) -> None:
        for name in ("alone", "over"):
            (self.folder / name).touch()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(240)
        _sky_holder.socket_file(self.name, "0").unlink(missing_ok=True)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.end()


def test_python_runs_in_the_job_on_the_streams_of_whoever_asks(job: Job) -> None:
    source = "import os, sys; print(sys.stdin.read() + os.environ['SLURM_JOB_ID'])"
    assert job.python("-c", source, said=b"answer: ") == b"answer: 42\n"


def test_job_lasts_while_anything_runs_and_gives_its_allocation_back(job: Job, tmp_path: Path) -> None:
    job.python("-c", ORPHAN, str(tmp_path / "over"))
    (tmp_path / "alone").touch()
    with pytest.raises(subprocess.TimeoutExpired):
        job.process.wait(4 * IDLE_S)
    assert job.python("-c", "print('still there')") == b"still there\n"
    (tmp_path / "over").touch()
    assert job.process.wait(240) == 0
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

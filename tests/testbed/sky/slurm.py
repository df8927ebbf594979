"""A SkyPilot with a Slurm of two nodes to launch on, alone in namespaces of their own: see slurm_bed.sh."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.s3 import die_with_parent, free_port

SCRIPT = Path(__file__).with_name("slurm_bed.sh")
PROGRAMS = ("unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "sshd", "rsync", "socat", "nc")
READY_S = 480.0
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing() -> str:
    """Return why it cannot run here, empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here"
    return "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "needs root, for namespaces"


@dataclass(frozen=True)
class SlurmBed:
    """A running one. `env` is what SkyPilot's clients need to use it."""

    folder: Path
    env: Mapping[str, str]

    def jobs(self) -> list[str]:
        """Return the numbers of Slurm's jobs that wait or run."""
        return self._call("squeue", "--noheader", "--format=%i").split()

    def cancel(self, job: str) -> None:
        """Take a job's nodes away."""
        self._call("scancel", job)

    def _call(self, *argv: str) -> str:
        env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=240).stdout


@contextlib.contextmanager
def slurm_bed(folder: Path, python: Path) -> Iterator[SlurmBed]:
    """Run one in a new folder; nothing of it is left afterwards.

    Args:
        folder: to be made; its path must be short (sockets).
        python: the interpreter of an environment that has SkyPilot.

    Raises:
        RuntimeError: it did not start; the message has what it said.
    """
    folder.mkdir()
    ports = [free_port() for _ in range(5)]
    argv = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "bash", str(SCRIPT)]
    argv += [str(folder), str(python), *map(str, ports)]
    with (folder / "said").open("wb") as said:
        bed = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, preexec_fn=die_with_parent
        )
    assert bed.stdin is not None
    assert bed.stdout is not None
    watchdog = threading.Timer(READY_S, bed.kill)
    watchdog.start()
    try:
        if bed.stdout.readline() != b"ready\n":
            raise RuntimeError((folder / "said").read_text() + (folder / "log" / "api.log").read_text())
        watchdog.cancel()
        env = {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(ports[4]),
        }
        yield SlurmBed(folder, env)
    finally:
        watchdog.cancel()
        bed.kill()
        bed.wait(240)
        bed.stdin.close()
        bed.stdout.close()
        with contextlib.suppress(OSError):  # SkyPilot's sockets of ssh
            shutil.rmtree(f"/tmp/sky_ssh_{(folder / 'home/.sky/user_hash').read_text().strip()}")

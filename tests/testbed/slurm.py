"""A real Slurm on this machine: one slurmctld, several slurmd, a munge daemon of its own, all in one folder.

    python -m tests.testbed.slurm        # prints `export SLURM_CONF=...`, runs until Ctrl-C

Each node has eight CPUs and four GPUs (character devices that stand for them), whatever the machine has. Partition
`main` is preempted (requeued, after a grace time) by partition `high`. Needs root, and Debian's slurm-wlm and munge.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed.s3 import die_with_parent, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel")
READY_S = 240.0
SBIN = "/usr/sbin"
GPUS = 4
GRACE_S = 120

_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=120
OverTimeLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime={grace_s}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=off
"""
_NODE = f"CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:a100:{GPUS}"


class SlurmMissing(Exception):
    """Slurm cannot be run here; the message says why."""


class SlurmCluster:
    """A running Slurm; `env` is what its client commands need."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def call(self, *argv: str, check: bool = True) -> str:
        """Run a client command and return what it printed."""
        done = subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state in short form, as `PD` or `R`; empty once it has ended."""
        return self.call("squeue", "--noheader", "--jobs", job, "--format=%t", check=False)

    def hurry(self, job: str) -> None:
        """Let a job that is put back start: else it waits two minutes, until the credential of its last start expires.

        (That could be a shorter time, in which a node that is held up starts nothing.) Not at once: what was granted in
        the second in which the job was put back is revoked.
        """
        self._until(lambda: self.state(job) == "PD", "the job is put back")
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def steps(self, job: str) -> list[str]:
        """Return the running steps of a job as `job.step name node`, its batch script aside."""
        out = self.call("squeue", "--steps", "--noheader", "--format=%i %j %N")
        steps = [line for line in out.splitlines() if line.startswith(f"{job}.")]
        return [line for line in steps if ".batch" not in line and ".extern" not in line]

    @contextlib.contextmanager
    def allocation(self, nodes: int) -> Iterator[str]:
        """Hold nodes in a job without a program; yields its number."""
        argv = ["salloc", "--no-shell", f"--nodes={nodes}", "--exclusive", f"--gres=gpu:{GPUS}"]
        done = subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=240, check=True)
        [job] = re.findall(r"Granted job allocation (\d+)", done.stderr)  # on a slow machine it says more
        try:
            yield job
        finally:
            self.call("scancel", job)
            self._until(lambda: not self.state(job), "the end of the allocation")

    def start(self) -> None:
        """Start all daemons and wait until every node is idle.

        Raises:
            RuntimeError: they are not ready in time; the message ends with the log.
        """
        self._make_folders()
        munge = self.folder / "munge"
        self._daemon("munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
                     f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={munge}/log")  # fmt: skip
        self._until(lambda: _listens(munge / "socket"), "munged")
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for i in range(self.nodes):
            self._daemon("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", f"node{i + 1}")
        self._until(lambda: self.call("sinfo", "-h", "-o", "%T %D", check=False) == f"idle {self.nodes}", "slurm")

    def _make_folders(self) -> None:
        for name in ("munge", "state", "spool", "dev"):
            (self.folder / name).mkdir()
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o400)
        for i in range(GPUS):  # anything but a character device gets no CUDA_VISIBLE_DEVICES
            os.mknod(self.folder / "dev" / f"gpu{i}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName=node{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} {_NODE}"
            for i in range(self.nodes)
        ]
        conf = _CONF.format(
            host=host, ctld_port=free_port(), folder=self.folder, nodes="\n".join(nodes), grace_s=GRACE_S
        )
        (self.folder / "slurm.conf").write_text(conf)
        gres = (
            f"AutoDetect=off\nNodeName=node[1-{self.nodes}] Name=gpu Type=a100 File={self.folder}/dev/gpu[0-{GPUS - 1}]"
        )
        (self.folder / "gres.conf").write_text(gres + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")

    def _daemon(self, name: str, *args: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    [f"{SBIN}/{name}", *args],
                    env=os.environ | self.env,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            )

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + READY_S
        while not condition():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self._daemons):
                raise RuntimeError(f"{what} not ready: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill everything: the daemons, the jobs' keepers and their processes."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait(240)
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def processes(self) -> list[int]:
        """Return every living process (zombies aside) of this cluster: they all have its SLURM_CONF."""
        needle, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if needle in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found


def _listens(file: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(file)) == 0


def running(nodes: int) -> Iterator[SlurmCluster]:
    """Run a cluster for tests: a fixture's body. Skips with the reason where there can be none."""
    try:
        with slurm_cluster(nodes) as cluster:
            yield cluster
        assert not cluster.processes()
        assert not cluster.folder.exists()
    except SlurmMissing as missing:
        pytest.skip(str(missing))


@contextlib.contextmanager
def slurm_cluster(nodes: int = 2) -> Iterator[SlurmCluster]:
    """Run a Slurm cluster in a fresh folder of its own; nothing of it is left afterwards.

    Call it from the main thread: Linux ends the daemons with the thread that started them.

    Raises:
        SlurmMissing: it cannot be run here.
    """
    missing = [p for p in PROGRAMS if shutil.which(p, path=os.environ.get("PATH", "") + f":{SBIN}") is None]
    if missing:
        raise SlurmMissing(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        raise SlurmMissing("slurmd needs root")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = SlurmCluster(Path(folder), nodes)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main() -> None:
    """Run a cluster until Ctrl-C."""
    with slurm_cluster() as cluster:
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    sys.exit(main())

"""The cluster that is this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from cluster import ClusterError, Node
from cluster.local import STARTER, LocalCluster
from tests.contracts.cluster import ClusterContract, Starter
from tests.testbed.runs import ROOT, wait_for


class TestLocalCluster(ClusterContract):
    @pytest.fixture
    def cluster(self, tmp_path: Path) -> LocalCluster:
        return LocalCluster(tmp_path / "work", Path("/"))

    def test_naming_nodes_leaves_no_trace(self, cluster: LocalCluster, tmp_path: Path) -> None:
        cluster.nodes("run", 4)
        assert not list(tmp_path.iterdir())

    def test_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        cluster = LocalCluster(tmp_path / "file", Path("/"))
        with pytest.raises(ClusterError, match="cannot make the working folder .*/file/run/node0"):
            cluster.make_ready(cluster.nodes("run", 1)[0])

    def test_kill_takes_what_left_the_group_and_no_bystander(
        self, cluster: LocalCluster, node: Node, start: Starter
    ) -> None:
        """A program's child in a session of its own, as torchrun's workers are, would survive a kill of the group."""
        child = "import signal; print('child', flush=True); signal.pause()"
        argv = [sys.executable, "-c", child]
        process = start(f"import subprocess; subprocess.Popen({argv!r}, start_new_session=True).wait()")
        bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        try:
            wait_for(lambda: b"child" in cluster.read(node, "program.log", 0), "the child is there", 30)
            family = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(recursive=True))]
            assert len(family) == 2
            process.kill()
            wait_for(lambda: not any(_lives(pid) for pid in family), "all are gone", 10)
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()

    def test_stopped_program_can_be_killed(self, start: Starter) -> None:
        process = start("import signal; signal.pause()")
        os.kill(process.pid, signal.SIGSTOP)
        process.kill()
        assert process.poll() == -signal.SIGKILL

    def test_program_is_told_who_started_it(self, cluster: LocalCluster, node: Node, start: Starter) -> None:
        process = start(f"import os; print(os.environ['{STARTER}'], os.getppid())")
        wait_for(lambda: process.poll() is not None, "the program ends", 30)
        assert cluster.read(node, "program.log", 0).split() == [str(os.getpid()).encode()] * 2


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_cluster_imports_neither_launcher_nor_fgtrain() -> None:
    script = "import sys, cluster.local; print([m for m in sys.modules if m.split('.')[0] in ('launcher', 'fgtrain')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

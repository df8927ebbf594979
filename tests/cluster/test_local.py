"""The cluster that is this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import ClusterError, Node, kinds
from cluster.local import STARTER, LocalCluster
from tests.contracts.cluster import RealClusterContract, Starter
from tests.testbed.runs import ROOT


class TestLocalCluster(RealClusterContract):
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

    def test_project_that_is_not_here_is_named(self, tmp_path: Path) -> None:
        cluster = LocalCluster(tmp_path / "work", tmp_path / "gone")
        with pytest.raises(ClusterError, match="/gone, where the run was begun, is not on this machine: put a copy"):
            cluster.make_ready(cluster.nodes("run", 1)[0])

    def test_program_is_told_who_started_it(self, cluster: LocalCluster, node: Node, start: Starter) -> None:
        process = start(f"import os; print(os.environ['{STARTER}'], os.getppid())")
        assert process.wait(240) == 0
        assert cluster.read(node, "program.log", 0).split() == [str(os.getpid()).encode()] * 2


def test_cluster_imports_neither_launcher_nor_fgtrain() -> None:
    backends = "".join(f"import cluster.{kind};" for kind in kinds())
    script = f"{backends} import sys; print([m for m in sys.modules if m.split('.')[0] in ('launcher', 'fgtrain')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

"""What every cluster does. A backend's tests subclass this and give it a `cluster` fixture."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cluster import Cluster, ClusterError, Command, Node, Process
from tests.testbed.runs import wait_for


class ClusterContract:
    @pytest.fixture
    def cluster(self) -> Cluster:
        raise NotImplementedError

    @pytest.fixture
    def node(self, cluster: Cluster) -> Node:
        node = cluster.nodes("run", 1)[0]
        cluster.make_ready(node)
        return node

    @pytest.fixture
    def start(self, cluster: Cluster, node: Node) -> Iterator[Starter]:
        starter = Starter(cluster, node)
        yield starter
        for process in starter.processes:
            process.kill()

    def test_nodes_of_a_run_differ_and_stay_the_same(self, cluster: Cluster) -> None:
        nodes = cluster.nodes("run", 3)
        assert len({n.name for n in nodes}) == len({n.folder for n in nodes}) == 3
        assert cluster.nodes("run", 3) == nodes
        assert {n.folder for n in cluster.nodes("other", 3)}.isdisjoint(n.folder for n in nodes)

    def test_making_a_node_ready_twice_is_no_error(self, cluster: Cluster, node: Node) -> None:
        cluster.make_ready(node)

    def test_program_runs_with_its_environment_folder_and_log(
        self, cluster: Cluster, node: Node, start: Starter
    ) -> None:
        process = start("import os; print(os.environ['GIVEN'], os.getcwd())", GIVEN="a b")
        assert wait_for(lambda: process.poll() is not None, "the program ends", 30)
        assert process.poll() == 0
        assert cluster.read(node, "program.log", 0).split() == [b"a", b"b", os.fsencode(os.path.realpath(node.project))]

    def test_output_is_appended_and_read_from_any_offset(self, cluster: Cluster, node: Node, start: Starter) -> None:
        for text in ("one", "two"):
            process = start(f"print('{text}')")
            wait_for(lambda process=process: process.poll() is not None, "the program ends", 30)
        assert cluster.read(node, "program.log", 0) == b"one\ntwo\n"
        assert cluster.read(node, "program.log", 4) == b"two\n"
        assert cluster.read(node, "program.log", 99) == b""

    def test_file_that_is_not_there_reads_as_empty(self, cluster: Cluster, node: Node) -> None:
        assert cluster.read(node, "nothing", 0) == b""

    def test_exit_status_is_told(self, start: Starter) -> None:
        process = start("raise SystemExit(7)")
        assert wait_for(lambda: process.poll() is not None, "the program ends", 30)
        assert process.poll() == 7

    def test_end_is_waited_for_and_not_longer_than_asked(self, start: Starter) -> None:
        assert start("raise SystemExit(7)").wait(30) == 7
        assert start("import signal; signal.pause()").wait(0.01) is None

    def test_terminated_program_may_finish_its_work(self, cluster: Cluster, node: Node, start: Starter) -> None:
        process = start(
            "import signal; signal.signal(signal.SIGTERM, lambda *a: exit(print('tidy') or 3));"
            "print('ready', flush=True); signal.pause()"
        )
        wait_for(lambda: cluster.read(node, "program.log", 0), "the program is ready", 30)
        process.terminate()
        wait_for(lambda: process.poll() is not None, "the program ends", 30)
        assert process.poll() == 3
        assert cluster.read(node, "program.log", 0) == b"ready\ntidy\n"

    def test_signals_to_what_has_ended_are_no_error(self, start: Starter) -> None:
        process = start("pass")
        wait_for(lambda: process.poll() is not None, "the program ends", 30)
        process.terminate()
        process.kill()
        assert process.poll() == 0

    def test_program_that_cannot_be_started_is_an_error(self, cluster: Cluster, node: Node) -> None:
        with pytest.raises(ClusterError, match="/no/such/program"):
            cluster.start(node, Command("program", ("/no/such/program",), {}))

    def test_used_port_is_told_from_a_free_one(self, cluster: Cluster, node: Node) -> None:
        port = cluster.free_port(node)
        assert not cluster.port_in_use(node, port)
        with socket.create_server((node.address, port)):
            assert cluster.port_in_use(node, port)
        assert not cluster.port_in_use(node, port)


class Starter:
    """Starts Python programs on a node."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster, self._node = cluster, node
        self.processes: list[Process] = []

    def __call__(self, program: str, **env: str) -> Process:
        command = Command("program", (self._node.python, "-c", program), env)
        self.processes.append(self._cluster.start(self._node, command))
        return self.processes[-1]

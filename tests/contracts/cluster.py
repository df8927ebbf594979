"""What every cluster does. A backend's tests subclass `RealClusterContract` and give it a `cluster` fixture.

A backend without real processes subclasses `ClusterContract`, and plays `PROGRAMS` its own way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial

import psutil  # type: ignore[import-untyped]
import pytest

from cluster import Cluster, ClusterError, Command, Node, Occupied, Owner, Process
from tests.testbed.ports import told_apart
from tests.testbed.runs import wait_for

OWNER, OTHER = Owner("1f", "run", "file:///own"), Owner("2e", "run", "file:///other")
PAUSE = "import signal; signal.pause()"
PROGRAMS = {
    "exit 7": "raise SystemExit(7)",
    "one": "print('one')",
    "two": "print('two')",
    "pause": PAUSE,
    "tidy": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"  # none is missed before the wait
        "print('ready', flush=True); signal.sigwait([signal.SIGTERM]); print('tidy'); raise SystemExit(3)"
    ),
    "given": "import os; print(os.environ['GIVEN'])",
}
"""What the contract runs, in Python."""


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

    def test_every_node_has_a_share_of_the_hardware(self, cluster: Cluster) -> None:
        nodes = cluster.nodes("run", 3)
        shares = cluster.hardware(nodes)
        assert len(shares) == 3
        assert all(share.cores >= 1 for share in shares)

    def test_agents_meet_on_a_node_of_the_run_or_one_apart(self, cluster: Cluster, node: Node) -> None:
        apart = cluster.rendezvous_node("run")
        place = apart or node
        cluster.make_ready(place)
        assert cluster.free_port(place) > 0
        assert cluster.rendezvous_node("run") == apart

    def test_node_that_answers_is_not_silent(self, cluster: Cluster, node: Node) -> None:
        assert cluster.silence_s(node) == 0

    def test_program_has_its_environment_and_log(self, cluster: Cluster, node: Node, start: Starter) -> None:
        assert start("given", GIVEN="a b").wait(240) == 0
        assert cluster.read(node, "program.log", 0) == b"a b\n"

    def test_output_is_appended_and_read_from_any_offset(self, cluster: Cluster, node: Node, start: Starter) -> None:
        for text in ("one", "two"):
            assert start(text).wait(240) == 0
        assert cluster.read(node, "program.log", 0) == b"one\ntwo\n"
        assert cluster.read(node, "program.log", 4) == b"two\n"
        assert cluster.read(node, "program.log", 99) == b""
        assert cluster.size(node, "program.log") == 8

    def test_file_that_is_not_there_reads_as_empty(self, cluster: Cluster, node: Node) -> None:
        assert cluster.read(node, "nothing", 0) == b""
        assert cluster.size(node, "nothing") == 0

    def test_exit_status_is_told(self, start: Starter) -> None:
        process = start("exit 7")
        assert process.wait(240) == 7
        assert process.poll() == 7

    def test_end_is_not_waited_for_longer_than_asked(self, start: Starter) -> None:
        process = start("pause")
        assert process.wait(0.01) is None
        assert process.poll() is None

    def test_terminated_program_may_finish_its_work(self, cluster: Cluster, node: Node, start: Starter) -> None:
        process = start("tidy")
        wait_for(lambda: cluster.read(node, "program.log", 0), "the program is ready", 240)
        process.terminate()
        assert process.wait(240) == 3
        assert cluster.read(node, "program.log", 0) == b"ready\ntidy\n"

    def test_killed_program_ends_by_a_signal(self, start: Starter) -> None:
        process = start("pause")
        process.kill()
        assert process.poll() == -signal.SIGKILL

    def test_signals_to_what_has_ended_are_no_error(self, start: Starter) -> None:
        process = start("one")
        assert process.wait(240) == 0
        process.terminate()
        process.kill()
        assert process.poll() == 0

    def test_program_that_cannot_be_started_is_an_error(self, cluster: Cluster, node: Node) -> None:
        with pytest.raises(ClusterError, match="/no/such/program"):
            cluster.start(node, Command("program", ("/no/such/program",), {}))

    def test_what_runs_is_found_by_its_name_where_it_lasts(self, cluster: Cluster, node: Node, start: Starter) -> None:
        assert cluster.find(node, "program") is None
        assert start("one").wait(240) == 0
        assert cluster.find(node, "program") is None
        first, newest = start("pause"), start("pause")
        found = cluster.find(node, "program")
        assert cluster.find(node, "other") is None
        if not cluster.lasting:
            assert found is None
            return
        assert found is not None
        assert found.pid == newest.pid
        found.kill()
        assert newest.wait(240) == -signal.SIGKILL
        left = cluster.find(node, "program")
        assert left is not None
        assert left.pid == first.pid

    def test_what_another_run_of_the_name_has_left_is_removed(
        self, cluster: Cluster, node: Node, start: Starter
    ) -> None:
        cluster.claim(node, OTHER)
        assert start("one").wait(240) == 0
        cluster.claim(node, OTHER)
        assert cluster.read(node, "program.log", 0) == b"one\n"
        cluster.claim(node, OWNER)
        assert cluster.read(node, "program.log", 0) == b""
        cluster.make_ready(node)
        assert start("two").wait(240) == 0
        assert cluster.read(node, "program.log", 0) == b"two\n"

    def test_node_where_another_run_of_the_name_is_at_work_is_refused(
        self, cluster: Cluster, node: Node, start: Starter
    ) -> None:
        cluster.claim(node, OTHER)
        assert start("one").wait(240) == 0
        process = start("pause")
        with pytest.raises(Occupied, match="a run called run, of file:///other, is at work there: choose another"):
            cluster.claim(node, OWNER)
        cluster.claim(node, OTHER)  # its own programs are no obstacle
        assert process.poll() is None
        assert cluster.read(node, "program.log", 0) == b"one\n"
        process.kill()
        cluster.claim(node, OWNER)

    def test_unsigned_folder_is_that_of_a_run_from_before_they_were_signed(
        self, cluster: Cluster, node: Node, start: Starter
    ) -> None:
        assert start("one").wait(240) == 0
        process = start("pause")
        with pytest.raises(Occupied, match="a run of an earlier version is at work there"):
            cluster.claim(node, OWNER)
        cluster.claim(node, OWNER._replace(early=True))
        assert process.poll() is None
        assert cluster.read(node, "program.log", 0) == b"one\n"


class RealClusterContract(ClusterContract):
    """What clusters of real processes do as well."""

    def test_program_runs_in_the_project(self, cluster: Cluster, node: Node, start: Starter) -> None:
        assert start("import os; print(os.getcwd())").wait(240) == 0
        assert cluster.read(node, "program.log", 0).strip() == os.fsencode(os.path.realpath(node.project))

    def test_kill_takes_what_left_the_group_and_no_bystander(
        self, cluster: Cluster, node: Node, start: Starter
    ) -> None:
        """A program's child in a session of its own, as torchrun's workers are, would survive a kill of the group."""
        argv = [node.python, "-c", f"print('child', flush=True); {PAUSE}"]
        process = start(f"import subprocess; subprocess.Popen({argv!r}, start_new_session=True).wait()")
        bystander = start(PAUSE)
        wait_for(lambda: b"child" in cluster.read(node, "program.log", 0), "the child is there", 240)
        family = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(recursive=True))]
        assert len(family) == 2
        process.kill()
        wait_for(lambda: not any(lives(pid) for pid in family), "all are gone", 240)
        assert bystander.poll() is None

    def test_stopped_program_can_be_killed(self, start: Starter) -> None:
        process = start(PAUSE)
        os.kill(process.pid, signal.SIGSTOP)
        process.kill()
        assert process.poll() == -signal.SIGKILL

    def test_used_port_is_told_from_a_free_one(self, cluster: Cluster, node: Node) -> None:
        def listen(port: int) -> contextlib.AbstractContextManager[object]:
            return socket.create_server((node.address, port))

        in_use = partial(cluster.port_in_use, node)
        assert told_apart(lambda: cluster.free_port(node), in_use, listen)


class Starter:
    """Starts a program of `PROGRAMS`, or one in Python, on a node."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster, self._node = cluster, node
        self.processes: list[Process] = []

    def __call__(self, program: str, **env: str) -> Process:
        command = Command("program", (self._node.python, "-c", PROGRAMS.get(program, program)), env)
        self.processes.append(self._cluster.start(self._node, command))
        return self.processes[-1]


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

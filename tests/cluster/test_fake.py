"""The cluster that is only played."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import ClusterError, Command, Unreachable, open_cluster
from cluster.fake import Clock, Event, FakeCluster, Program, Script, Terminated, canned
from tests.contracts.cluster import PROGRAMS, ClusterContract


def one(program: Program) -> Script:
    program.write(b"one\n")
    return 0
    yield


def two(program: Program) -> Script:
    program.write(b"two\n")
    return 0
    yield


def given(program: Program) -> Script:
    program.write(program.env["GIVEN"].encode() + b"\n")
    return 0
    yield


def tidy(program: Program) -> Script:
    program.write(b"ready\n")
    try:
        yield 1e9
    except Terminated:
        program.write(b"tidy\n")
        return 3
    return 0


PLAYED = {
    "exit 7": canned(1.0, 7),
    "one": one,
    "two": two,
    "pause": canned(1e9, 0),
    "tidy": tidy,
    "given": given,
}


class TestFakeCluster(ClusterContract):
    @pytest.fixture
    def cluster(self) -> FakeCluster:
        return FakeCluster(Clock(), ["a", "b", "c"], {PROGRAMS[name]: play for name, play in PLAYED.items()})

    def test_every_program_of_the_contract_is_played(self) -> None:
        assert PLAYED.keys() == PROGRAMS.keys()


RUN = Command("agent", ("agent",), {})


def test_time_passes_only_when_it_is_moved() -> None:
    clock = Clock()
    cluster = FakeCluster(clock, ["a"], {"agent": canned(10.0, 7)})
    process = cluster.start(cluster.nodes("run", 1)[0], RUN)
    clock.advance(9.9)
    assert process.poll() is None
    clock.advance(0.1)
    assert process.poll() == 7
    assert clock.now() == 10.0


def test_waiting_lets_time_pass_no_further_than_needed() -> None:
    clock = Clock()
    cluster = FakeCluster(clock, ["a"], {"agent": canned(10.0, 0)})
    process = cluster.start(cluster.nodes("run", 1)[0], RUN)
    assert process.wait(100) == 0
    assert clock.now() == 10.0


def test_nodes_join_and_are_lost_on_schedule() -> None:
    clock = Clock()
    events = [Event(5.0, "join", "b"), Event(10.0, "lose", "a")]
    cluster = FakeCluster(clock, ["a", "b"], {"agent": canned(1e9, 0)}, events)
    with pytest.raises(ClusterError, match="2 nodes are asked for, and there are 1"):
        cluster.nodes("run", 2)
    clock.advance(5.0)
    a, b = cluster.nodes("run", 2)
    process = cluster.start(a, RUN)
    clock.advance(7.0)
    assert cluster.nodes("run", 1) == [b]
    assert cluster.silence_s(a) == 2.0
    assert process.poll() is None, "whoever cannot be asked is not known to be dead"
    with pytest.raises(Unreachable, match="a does not answer"):
        cluster.start(a, RUN)
    cluster.happen("join", "a")
    assert process.poll() == -9
    assert cluster.read(a, "agent.log", 0) == b""


def test_programs_go_on_behind_a_cut() -> None:
    clock = Clock()
    events = [Event(1.0, "cut", "a"), Event(20.0, "heal", "a")]
    cluster = FakeCluster(clock, ["a"], {"agent": canned(10.0, 7)}, events)
    node = cluster.nodes("run", 1)[0]
    process = cluster.start(node, RUN)
    clock.advance(15.0)
    process.kill()
    assert process.poll() is None
    assert cluster.silence_s(node) == 14.0
    clock.advance(5.0)
    assert process.poll() == 7
    assert cluster.silence_s(node) == 0


def test_script_may_do_things_over_time() -> None:
    def agent(program: Program) -> Script:
        for step in range(3):
            program.append("events.jsonl", b"%d\n" % step)
            yield 1.0
        return 0

    clock = Clock()
    cluster = FakeCluster(clock, ["a"], {"agent": agent})
    node = cluster.nodes("run", 1)[0]
    process = cluster.start(node, RUN)
    clock.advance(1.5)
    assert cluster.read(node, "events.jsonl", 0) == b"0\n1\n"
    process.terminate()
    assert process.poll() == -15
    clock.advance(10.0)
    assert cluster.read(node, "events.jsonl", 0) == b"0\n1\n"


def test_configured_one_follows_the_real_clock(tmp_path: Path) -> None:
    settings = {"nodes": 1, "programs": {"agent": [0.05, 7]}}
    cluster = open_cluster("fake", settings, tmp_path, tmp_path)
    process = cluster.start(cluster.nodes("run", 1)[0], RUN)
    assert process.wait(240) == 7


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"node": 1}, "fake has no setting 'node'"),
        ({"nodes": 0}, "nodes is 0, and should be"),
        ({"programs": {"agent": 3}}, "programs should look like"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=complaint):
        open_cluster("fake", settings, tmp_path, tmp_path)

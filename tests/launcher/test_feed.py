"""What nodes say is read on from where it was left; what they have said long ago is passed over, however much it is."""

from __future__ import annotations

import json

import msgspec
import pytest

from cluster import Node
from fgtrain.runstore import Failure
from launcher.commands.attach import _HISTORY_BYTES, _news
from launcher.feed import Feed
from tests.launcher.scene import Scene
from tests.launcher.test_supervisor_succession import killed_at
from tests.testbed.fake_training import FakeClock, FakeCluster


class Slow(FakeCluster):
    """A cluster that counts what is read, and gives only so much of it at once, as where an answer is late."""

    def __init__(self, clock: FakeClock, hosts: int) -> None:
        super().__init__(clock, hosts)
        self.read_bytes, self.at_once = 0, 1 << 30

    def read(self, node: Node, name: str, offset: int) -> bytes:
        data = super().read(node, name, offset)[: self.at_once]
        self.read_bytes += len(data)
        return data


@pytest.fixture
def cluster() -> Slow:
    return Slow(FakeClock(), 1)


@pytest.fixture
def node(cluster: Slow) -> Node:
    return cluster.nodes("run", 1)[0]


def line(**event: object) -> str:
    return json.dumps({"event": "note", **event}) + "\n"


def test_what_was_said_before_is_passed_over_without_reading_it(cluster: Slow, node: Node) -> None:
    for name in ("events.jsonl", "agent.log"):
        cluster.append(node, name, line(text="old") * 1000)
    feed = Feed(cluster)
    feed.skip(node)
    assert cluster.read_bytes == 0
    cluster.append(node, "events.jsonl", line(text="new"))
    cluster.append(node, "agent.log", "new\n")
    assert [e["text"] for e in feed.events([node])] == ["new"]
    assert feed.agent_lines([node]) == [["new"]]


def test_node_that_does_not_answer_is_passed_over_up_to_when_it_does(cluster: Slow, node: Node) -> None:
    cluster.append(node, "events.jsonl", line(text="old"))
    cluster.quiet.add(node.name)
    feed = Feed(cluster)
    feed.skip(node)
    assert list(feed.events([node])) == []
    cluster.quiet.clear()
    assert list(feed.events([node])) == []
    cluster.append(node, "events.jsonl", line(text="new"))
    assert [e["text"] for e in feed.events([node])] == ["new"]


def test_end_of_an_agents_log_is_all_that_is_read_of_it(cluster: Slow, node: Node) -> None:
    cluster.append(node, "agent.log", "x" * 9_000 + "y" * 1000)
    assert Feed(cluster).agent_tails([node]) == ["x" * 1000 + "y" * 1000]
    assert cluster.read_bytes == 2000
    cluster.quiet.add(node.name)
    assert Feed(cluster).agent_tails([node]) == [""]


def test_who_attaches_sees_the_last_of_what_was_said(cluster: Slow, node: Node) -> None:
    old, new, offsets = line(text="old"), line(text="new"), dict[str, int]()
    cluster.append(node, "events.jsonl", old + new * (_HISTORY_BYTES // len(new)))
    cluster.quiet.add(node.folder)  # what a node is called that is known by its folder
    assert list(_news(cluster, node.folder, offsets)) == []
    cluster.quiet.clear()
    seen = [e["text"] for e in _news(cluster, node.folder, offsets)]
    assert set(seen) == {"new"}
    assert cluster.read_bytes <= _HISTORY_BYTES
    cluster.append(node, "events.jsonl", line(text="newest"))
    assert [e["text"] for e in _news(cluster, node.folder, offsets)] == ["newest"]


def test_failure_that_is_long_past_does_not_end_a_run_that_is_taken_over() -> None:
    scene = Scene(cluster=lambda clock: Slow(clock, 3))
    killed_at(scene, 20.0)
    assert isinstance(scene.cluster, Slow)
    scene.cluster.at_once = 1000
    for agent in scene.cluster.running("agent"):
        failure = Failure(
            attempt=0,
            rank=0,
            time=1.0,
            kind="user",
            message="there was no data",
            traceback="",
            folder=agent.node.folder,
        )
        old = line(text="long ago") * 100 + line(event="failure", failure=msgspec.to_builtins(failure))
        scene.cluster.append(agent.node, "events.jsonl", old)
    assert scene.supervise().state == "finished"

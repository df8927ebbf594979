"""Who is silent for good: by the word of other agents, or to the supervisor while nothing moves."""

from __future__ import annotations

import pytest

from cluster.fake import Clock, FakeCluster
from launcher.silence import Silence

SAID = "02:08:48 agent 7: "


class Scene:
    """Two nodes of a fake cluster, given up after 100 s."""

    def __init__(self, give_up_s: float = 100.0) -> None:
        self.clock = Clock()
        self.cluster = FakeCluster(self.clock, ["a", "b"], {})
        self.nodes = self.cluster.nodes("run", 2)
        for node in self.nodes:
            self.cluster.make_ready(node)
        self.notes: list[str] = []
        self.silence = Silence(self.cluster, self.notes.append, give_up_s)

    def lost(self, now: float, still_s: float = 0.0) -> list[str]:
        self.clock.advance(now - self.clock.now())
        return [node.name for node, _ in self.silence.lost(now, self.nodes, still_s)]

    def hear(self, now: float, node: str, what: str) -> None:
        self.silence.hear(now, node, SAID + what)


def test_node_that_others_find_silent_is_lost_once_that_lasts_and_then_again() -> None:
    scene = Scene()
    scene.hear(10.0, "a", "b silent for 3.0 s")
    assert scene.lost(109.0) == []
    assert scene.lost(110.0) == ["b"]
    assert scene.lost(111.0) == []
    assert scene.lost(210.0) == ["b"], "nobody could take over: it is asked for again"


def test_node_whose_agent_speaks_is_back() -> None:
    scene = Scene()
    scene.hear(10.0, "a", "b silent for 3.0 s")
    scene.hear(50.0, "b", "cut off: no answer from the store that agents meet in for 3.1 s")
    assert scene.lost(500.0) == []


def test_new_agent_does_not_pay_for_the_silence_of_the_one_before() -> None:
    scene = Scene()
    scene.silence.begins(10.0, "b")
    scene.hear(13.0, "a", "b silent for 3.0 s")
    assert scene.lost(500.0) == []
    scene.hear(501.0, "b", "round 1: node rank 1 of 2")
    scene.hear(510.0, "a", "b silent for 3.0 s")
    assert scene.lost(610.0) == ["b"]


def test_agent_that_never_says_anything_is_lost_in_the_end() -> None:
    scene = Scene()
    scene.silence.begins(10.0, "b")
    scene.hear(700.0, "a", "b silent for 3.0 s")
    assert scene.lost(800.0) == ["b"]


@pytest.mark.parametrize(("still_s", "lost"), [(5.0, []), (200.0, ["b"])])
def test_silence_to_the_supervisor_alone_counts_only_when_nothing_moves(still_s: float, lost: list[str]) -> None:
    scene = Scene()
    scene.cluster.happen("cut", "b")
    assert scene.lost(99.0, still_s) == []
    assert scene.lost(101.0, still_s) == lost


def test_nothing_is_given_up_where_the_settings_say_so() -> None:
    scene = Scene(give_up_s=0.0)
    scene.cluster.happen("cut", "b")
    scene.hear(10.0, "a", "b silent for 3.0 s")
    assert scene.lost(1e6, 1e6) == []


@pytest.mark.parametrize(("least", "waits"), [(1, False), (2, True)])
def test_nodes_wait_when_too_few_of_them_are_left(least: int, waits: bool) -> None:
    scene = Scene()
    assert not scene.silence.keep_waiting(scene.nodes, least)
    scene.hear(10.0, "a", "b silent for 3.0 s")
    assert scene.silence.keep_waiting(scene.nodes, least) is waits


CUT = "cut off: no answer from the store that agents meet in for 3.1 s"


@pytest.mark.parametrize(
    ("cut", "lines", "stranded"),
    [
        (["a"], [("b", CUT)], True),
        (["a"], [("b", "the store that agents meet in is gone: Connection reset by peer")], True),
        (["a"], [], False),  # the others go on: it is only we who do not reach it
        ([], [("b", CUT)], False),  # we reach it: it may only be frozen
        (["a", "b"], [("b", CUT)], False),  # it may be we who are cut off
        (["a"], [("b", CUT), ("b", "round 3: node rank 1 of 2 after b begins again")], False),
    ],
)
def test_store_is_out_of_reach_when_neither_we_nor_its_agents_reach_it(
    cut: list[str], lines: list[tuple[str, str]], stranded: bool
) -> None:
    scene = Scene()
    for node in cut:
        scene.cluster.happen("cut", node)
    for node, line in lines:
        scene.hear(2.0, node, line)
    a, b = scene.nodes
    assert not scene.silence.stranded(a, [b], 3.0), "it may be back in a moment"
    scene.clock.advance(10.0)
    assert scene.silence.stranded(a, [b], 3.0) == stranded
    scene.silence.begins(20.0, "b")
    assert not scene.silence.stranded(a, [b], 3.0), "a new agent has not tried yet"

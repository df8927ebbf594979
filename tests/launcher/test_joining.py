"""Runs that begin on fewer nodes than they might have, on a fake cluster whose hosts come and go."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster import ClusterError, Fewer, Node
from cluster._abreast import ByThreads
from fgtrain.plan import World
from launcher import exclusions, foreground
from launcher.abreast import aside
from tests.launcher.scene import Scene, killed_at, once
from tests.testbed.fake_training import FakeClock, FakeCluster

ELASTIC = World(2, 1, max_nodes=4)
WAIT_S = 240.0


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def agents(scene: Scene) -> dict[str, float]:
    """Return when an agent was first started on each host, in seconds since the first attempt began."""
    began = scene.training.began[0][0]
    return {p.node.name: round(p.started - began, 1) for p in reversed(scene.cluster.started("agent"))}


def test_run_begins_on_the_nodes_there_are_and_takes_in_who_comes_later() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)
    scene.at(40.0, lambda: scene.cluster.hosts.append("host2"))
    scene.at(60.0, lambda: scene.cluster.hosts.append("host3"))
    assert scene.supervise().state == "finished"
    when = agents(scene)
    assert set(when) == {"host0", "host1", "host2", "host3"}
    assert when["host0"] < 0
    assert when["host1"] < 0
    assert 30 < when["host2"] < 75
    assert 50 < when["host3"] < 95
    assert scene.noted("begins on 2 of 4 nodes: others are taken in when they are there")
    assert scene.noted("host3 is there now, and takes part")
    assert {p.node.name for p in scene.cluster.started("check")} == set(when)
    assert len(scene.cluster.started("agent")) == 4


def test_run_that_needs_more_nodes_than_there_are_does_not_begin() -> None:
    scene = Scene(hosts=1, world=ELASTIC)
    outcome = scene.supervise()
    assert (outcome.state, outcome.message) == ("failed", "capacity: 4 nodes are more than there are")
    assert scene.cluster.started("agent") == []


def test_spares_are_nodes_that_a_run_begins_without() -> None:
    scene = Scene(hosts=2, world=World(2, 1, spares=1))
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host1"}


def test_node_that_comes_later_and_is_broken_is_never_started_on() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)
    scene.cluster.reports["host2"] = {"writable": False}
    scene.at(20.0, lambda: scene.cluster.hosts.extend(["host2", "host3"]))
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host1", "host3"}
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host2"]


def test_node_that_fails_its_check_is_done_without() -> None:
    scene = Scene(hosts=3, world=World(2, 1, max_nodes=3))
    scene.cluster.reports["host1"] = {"writable": False}
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host2"}
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host1"]


def test_node_that_breaks_is_done_without() -> None:
    scene = Scene(hosts=3, world=World(2, 1, max_nodes=3))
    scene.training.faults[7] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=1))
    assert scene.supervise().state == "finished"
    assert scene.training.began[1][1] == 5
    assert [p.node.name for p in scene.cluster.started("agent")].count("host1") == 1
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host1"]


def test_node_that_comes_later_and_cannot_be_started_on_stops_nobody() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)

    def comes() -> None:
        scene.cluster.hosts.append("host2")
        scene.cluster.refuses["host2"] = "agent"

    scene.at(20.0, comes)
    scene.at(70.0, scene.cluster.refuses.clear)
    assert scene.supervise().state == "finished"
    assert len(scene.training.began) == 1
    assert len(scene.cluster.started("agent", "host2")) == 1


def test_who_takes_over_goes_on_looking_for_nodes() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)
    killed_at(scene, 20.0)
    scene.cluster.hosts.append("host2")
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host1", "host2"}
    assert len(scene.training.began) == 1


def test_pick_takes_fewer_if_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(FakeClock(), 4)
    names = [n.name for n in exclusions.pick(cluster, "run", 8, {"host1"}, least=3)]
    assert names == ["host0", "host2", "host3"]
    with pytest.raises(ClusterError, match="8 nodes are more than there are"):
        exclusions.pick(cluster, "run", 8, {"host1"}, least=4)
    assert len(exclusions.pick(cluster, "run", 2, {"host0", "host1"}, least=1)) == 2


def test_what_is_missing_is_told_before_anything_starts() -> None:
    scene = Scene(hosts=3, world=ELASTIC)
    told = foreground.check_start(scene.run, scene.cluster, ELASTIC, None)
    assert "4 nodes are more than there are: the run begins on 3, and takes others in when they are there" in told
    with pytest.raises(Fewer):
        foreground.check_start(scene.run, scene.cluster, World(4, 1), None)


class Threaded(ByThreads):
    """A cluster that can be asked from several threads."""


def test_what_takes_long_is_done_aside_where_it_can_be() -> None:
    gate = threading.Event()
    done = aside(Threaded(), lambda: gate.wait(WAIT_S))  # type: ignore[arg-type]
    assert not done.done()
    gate.set()
    assert done.result(WAIT_S)

    def fails() -> Node:
        raise ClusterError("no")

    assert isinstance(aside(FakeCluster(FakeClock(), 1), fails).exception(0), ClusterError)

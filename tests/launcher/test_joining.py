"""Runs that begin on fewer nodes than they might have, on a fake cluster whose hosts come and go."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import ClusterError, Fewer, Node
from cluster._abreast import ByThreads
from fgtrain.errors import Corrupt
from fgtrain.notice import LEAVES
from fgtrain.plan import World
from fgtrain.runstore import RunStore
from launcher import exclusions, foreground
from launcher.abreast import aside
from launcher.fleet import Seat
from tests.launcher.scene import Scene, killed_at, once
from tests.testbed.fake_training import FakeClock, FakeCluster, FakeTraining, RentingCluster

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


def spoiled(scene: Scene, spoil: Callable[[FakeTraining, int], None], *, hosts: int = 1) -> None:
    """Have hosts come that spoil every attempt they are part of; the run goes on without them, as if nothing was."""
    scene.training.grows = True
    scene.training.commits = False  # so that nothing refills budgets
    names = [f"host{2 + i}" for i in range(hosts)]
    scene.training.spoils = dict.fromkeys(names, spoil)
    scene.at(20.0, lambda: scene.cluster.hosts.extend(names))
    assert scene.supervise().state == "finished"
    assert {len(scene.cluster.started("agent", name)) for name in ("host0", "host1")} == {1}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("data.root: /data is not there", "user"),
        ("ImportError: libGL.so.1: cannot open shared object file", "error"),
        ("OSError: [Errno 28] No space left on device", "error"),
    ],
)
def test_node_that_spoils_what_it_joins_is_done_without(message: str, kind: str) -> None:
    scene = Scene(steps=400, hosts=2, world=ELASTIC)
    spoiled(scene, lambda t, rank: t.fail(message, rank, kind))
    asked = [p.started for p in scene.cluster.started("agent", "host2")]
    assert 2 <= len(asked) <= 4
    assert all(b - a > 60 for a, b in itertools.pairwise(asked))
    assert asked == sorted(asked)
    assert scene.noted(f"host2 cannot take part: {'capacity' if 'space' in message else kind}: {message}")
    assert sum("host2 cannot take part" in note for note in scene.notes) == 1
    assert not scene.noted("try 1 of")


@pytest.mark.parametrize("what", ["peer", "error", "SIGABRT"])
def test_node_that_fails_on_the_others_is_done_without(what: str) -> None:
    """A link that does not work is noticed at both ends: what the other end says is put down to who is new."""
    scene = Scene("lost.tries=2", steps=400, hosts=2, world=ELASTIC)

    def spoil(training: FakeTraining, rank: int) -> None:
        if what == "SIGABRT":
            training.die(-signal.SIGABRT, 0)
        else:
            training.fail("RuntimeError: connection closed", 0, what)

    spoiled(scene, spoil)
    assert 2 <= len(scene.cluster.started("agent", "host2")) <= 4
    assert scene.noted("host2 cannot take part")


def test_nobody_takes_the_place_of_a_node_on_probation() -> None:
    scene = Scene(steps=200, hosts=2, world=World(2, 1, max_nodes=3))
    scene.training.grows = True
    scene.training.spoils = {
        "host2": lambda t, rank: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank),
        "host3": lambda t, rank: t.fail("data.root: /data is not there", rank, "user"),
    }
    scene.at(20.0, lambda: scene.cluster.hosts.extend(["host2", "host3"]))
    assert scene.supervise().state == "finished"
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host2"]
    assert scene.noted("host3 cannot take part: user")


def test_node_that_was_done_without_and_is_needed_later_counts_as_any_other() -> None:
    scene = Scene(steps=200, hosts=1, world=World(1, 1, max_nodes=2))
    scene.training.grows = True
    scene.training.spoils["host1"] = lambda t, rank: t.fail("data.root: /data is not there", rank, "user")
    scene.at(10.0, lambda: scene.cluster.hosts.append("host1"))
    scene.at(50.0, lambda: scene.training.spoils.clear())
    scene.training.faults[60] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=0))
    scene.training.faults[90] = once(lambda t: t.lose(0))
    outcome = scene.supervise()
    assert outcome.state == "finished", outcome.message
    assert scene.noted("host1 takes the place of host0")
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert scene.noted("lost: the agent of host1 died (SIGKILL); try 1 of")


def test_node_on_probation_that_leaves_after_a_notice_is_asked_again() -> None:
    scene = Scene(steps=400, hosts=2, world=ELASTIC)
    scene.training.grows = True
    left: list[float] = []

    def leaves(training: FakeTraining, rank: int) -> None:
        agent = scene.cluster.running("agent")[rank]
        scene.cluster.append(agent.node, "agent.log", f"02:08:48 agent {agent.pid}: {LEAVES}\n")
        left.append(scene.clock.now())
        scene.at(5.0, lambda: agent.end(75))
        scene.training.spoils.clear()

    scene.training.spoils["host2"] = leaves
    scene.at(20.0, lambda: scene.cluster.hosts.append("host2"))
    assert scene.supervise().state == "finished"
    assert len(left) == 1
    assert len(scene.cluster.started("agent", "host2")) == 2


def test_heir_knows_who_is_on_probation() -> None:
    scene = Scene(steps=200, hosts=2, world=ELASTIC)
    scene.at(10.0, lambda: scene.cluster.hosts.append("host2"))
    supervisors: list[int] = []

    def spoil(training: FakeTraining, rank: int) -> None:
        supervisors.append(len(training.began))
        training.fail("data.root: /data is not there", rank, "user")

    killed_at(scene, 60.0)
    assert scene.cluster.started("agent", "host2")
    scene.training.spoils["host2"], scene.training.grows = spoil, True
    assert scene.supervise().state == "finished"
    assert supervisors
    assert scene.noted("taking over from supervisor 1")
    assert scene.noted("host2 cannot take part: user")


def with_a_node_that_breaks_and_falls_silent() -> Scene:
    scene = Scene(hosts=3, steps=200, world=World(2, 1, max_nodes=3))

    def breaks(training: FakeTraining) -> None:
        training.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=1)
        scene.cluster.quiet.add("host1")

    scene.training.faults[7] = once(breaks)
    return scene


def test_heir_ends_what_runs_on_a_broken_node_that_was_silent() -> None:
    scene = with_a_node_that_breaks_and_falls_silent()
    killed_at(scene, 40.0)
    scene.at(20.0, scene.cluster.quiet.clear)
    assert scene.supervise().state == "finished"
    assert scene.noted("taking over from supervisor 1")
    assert [p.code for p in scene.cluster.started("agent", "host1")] == [-signal.SIGKILL]


def test_run_begins_on_other_nodes_than_those_that_cannot_be_made_ready() -> None:
    scene = Scene(hosts=4)
    scene.cluster.full |= {"host0", "host1"}
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host2", "host3"}


def test_node_whose_agent_dies_whenever_it_joins_is_done_without() -> None:
    scene = Scene("lost.tries=2", steps=400, hosts=2, world=ELASTIC)
    spoiled(scene, lambda t, rank: t.lose(rank))
    assert 2 <= len(scene.cluster.started("agent", "host2")) <= 4
    assert scene.noted("host2 cannot take part: lost: the agent of host2 died (SIGKILL)")


def test_node_that_was_done_without_takes_part_once_it_is_well() -> None:
    scene = Scene(steps=400, hosts=2, world=ELASTIC)
    scene.at(60.0, lambda: scene.training.spoils.clear())
    spoiled(scene, lambda t, rank: t.fail("data.root: /data is not there", rank, "user"))
    assert len(scene.cluster.started("agent", "host2")) == 2
    assert len({p.node.name for p in scene.cluster.started("agent")}) == 3


def test_node_that_has_taken_a_step_counts_as_any_other() -> None:
    scene = Scene(steps=120, hosts=2, world=ELASTIC)
    scene.training.grows = True
    scene.at(20.0, lambda: scene.cluster.hosts.append("host2"))
    scene.training.faults[70] = once(lambda t: t.fail("data.root: /data is not there", 2, "user"))
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 2)


def test_node_that_is_needed_counts_as_any_other() -> None:
    scene = Scene(steps=120, hosts=2, world=World(2, 1, max_nodes=3))
    scene.training.grows = True
    scene.training.faults[5] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=1))
    scene.at(2.0, lambda: scene.cluster.hosts.append("host2"))
    scene.training.spoils["host2"] = lambda t, rank: t.fail("data.root: /data is not there", rank, "user")
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 2)


def test_as_many_nodes_on_probation_count_as_are_needed() -> None:
    scene = Scene(hosts=5, world=World(3, 1, max_nodes=5))
    supervisor = scene.supervisor()
    fleet, joining = supervisor._fleet, supervisor._joining
    nodes = scene.cluster.nodes("run", 5)
    fleet.seats = [Seat(n, probation=None if i < 3 else 0) for i, n in enumerate(nodes)]
    assert joining.uncounted() == ({"host3", "host4"}, set())
    fleet.unseat(fleet.seats[0])
    assert joining.uncounted() == ({"host0", "host4"}, set())


def test_node_with_other_devices_is_not_taken_in() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)
    scene.cluster.gpus = {"host0": ("0",), "host1": ("0",)}
    scene.at(20.0, lambda: scene.cluster.hosts.append("host2"))
    assert scene.supervise().state == "finished"
    assert scene.cluster.started("agent", "host2") == []
    assert scene.noted("host2 cannot take part: --gpus 1: host2 has 0 GPUs")


def test_one_node_that_cannot_be_had_does_not_keep_others_out() -> None:
    scene = Scene(hosts=2, steps=120, world=ELASTIC)
    scene.cluster.full.add("host2")
    scene.at(20.0, lambda: scene.cluster.hosts.extend(["host2", "host3"]))
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host1", "host3"}
    assert scene.noted("host2 cannot take part: host2: no room on its disk; it is asked again")


def test_node_that_gives_its_check_no_answer_is_asked_again() -> None:
    scene = Scene(hosts=2, steps=200, world=ELASTIC)
    scene.cluster.refuses["host2"] = "check"
    scene.at(20.0, lambda: scene.cluster.hosts.append("host2"))
    scene.at(60.0, scene.cluster.refuses.clear)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent", "host2")) == 1
    assert exclusions.of_run(scene.runs) == []


def test_node_that_cannot_be_made_ready_is_done_without_from_the_start() -> None:
    scene = Scene(hosts=4, world=ELASTIC)
    scene.cluster.full.add("host1")
    assert scene.supervise().state == "finished"
    assert set(agents(scene)) == {"host0", "host2", "host3"}
    assert scene.noted("host1 is done without: host1: no room on its disk")
    needed = Scene(hosts=2)
    needed.cluster.full.add("host1")
    assert "host1: no room on its disk" in needed.supervise().message


def test_trouble_with_the_store_ends_no_run_that_looks_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(hosts=2, steps=60, world=ELASTIC)
    names = exclusions.excluded_names

    def unreadable(runs: RunStore, cluster: str) -> set[str]:
        if scene.clock.now() > 1020.0:
            raise Corrupt("excluded/host7.json: no JSON")
        return names(runs, cluster)

    monkeypatch.setattr(exclusions, "excluded_names", unreadable)
    assert scene.supervise().state == "finished"
    assert scene.noted("no other node is looked for: who is excluded cannot be read: excluded/host7.json: no JSON")


def test_broken_node_that_answers_no_more_is_killed_when_it_does() -> None:
    scene = with_a_node_that_breaks_and_falls_silent()
    scene.at(40.0, scene.cluster.quiet.clear)
    assert scene.supervise().state == "finished"
    assert [p.code for p in scene.cluster.started("agent", "host1")] == [-signal.SIGKILL]


def test_who_takes_over_leaves_a_broken_node_alone() -> None:
    scene = Scene(hosts=3, steps=120, world=World(2, 1, max_nodes=3))
    scene.training.faults[7] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=0))
    killed_at(scene, 30.0)
    begun = len(scene.training.began)
    assert scene.supervise().state == "finished"
    assert scene.noted("taking over from supervisor 1"), "the store that agents meet in, on host0, is found"
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert len(scene.training.began) == begun
    assert scene.cluster.running("rendezvous") == []


def test_nodes_that_are_rented_are_not_done_without() -> None:
    scene = Scene("hardware.tries=1", cluster=lambda clock: RentingCluster(clock, 2), world=World(1, 1, max_nodes=2))
    numbers = itertools.count()
    scene.training.faults[7] = lambda t: t.fail(f"RuntimeError: Xid {next(numbers)}", rank=1)
    scene.training.commits = False
    assert "given up (hardware" in scene.supervise().message


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
    assert "4 nodes are more than there are: the run begins with fewer, and takes others in when they are there" in told
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

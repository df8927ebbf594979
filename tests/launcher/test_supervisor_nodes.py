"""Nodes that break, fall silent or leave, and the store that agents meet in, on a fake cluster."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from cluster import Command
from fgtrain.notice import LEAVES
from launcher import exclusions
from tests.launcher.scene import Scene, cut, gaps, once
from tests.testbed.fake_training import FakeTraining


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def test_node_with_broken_hardware_is_replaced_and_stays_excluded() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: t.fail("RuntimeError: CUDA error: uncorrectable ECC error", rank=1))
    assert scene.supervise().state == "finished"
    assert scene.training.began[1][1] == 5
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host0", "host1", "host2"}
    [kept] = exclusions.of_user("lab")
    assert (kept.node, kept.run) == ("host1", "run")
    assert [e.node for e in exclusions.of_run(scene.runs)] == ["host1"]
    other = Scene()
    assert other.supervise().state == "finished"
    assert {p.node.name for p in other.cluster.started("agent")} == {"host0", "host2"}


def test_broken_node_without_another_is_excluded_when_the_run_is_given_up() -> None:
    scene = Scene("hardware.tries=2", hosts=2)
    numbers = itertools.count()
    scene.training.faults[7] = lambda t: t.fail(f"RuntimeError: Xid {next(numbers)}", rank=1)
    scene.training.commits = False
    outcome = scene.supervise()
    assert "given up (hardware, 3 times without progress past step 0)" in outcome.message
    assert [e.node for e in exclusions.of_user("lab")] == ["host1"]
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host0", "host1"}


def test_node_that_fails_its_check_is_never_started_on() -> None:
    scene = Scene()
    scene.cluster.reports["host0"] = {"writable": False}
    assert scene.supervise().state == "finished"
    assert {p.node.name for p in scene.cluster.started("agent")} == {"host1", "host2"}
    assert scene.noted("host0 is not used any more: its working folder cannot be written")


def test_run_whose_nodes_all_fail_their_check_does_not_start() -> None:
    scene = Scene(hosts=2)
    scene.cluster.reports["host1"] = {"disk_free": 0}
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "host1 failed its check: its disk has 0.00 GiB free" in outcome.message
    assert scene.cluster.started("agent") == scene.cluster.running("rendezvous") == []


def test_check_can_be_left_out() -> None:
    scene = Scene("check.level=off")
    scene.cluster.reports["host0"] = {"writable": False}
    assert scene.supervise().state == "finished"
    assert scene.cluster.started("check") == []


def test_node_that_cannot_be_reached_any_more_gives_its_place_to_another() -> None:
    scene = Scene()

    def gone(training: FakeTraining) -> None:
        scene.cluster.down.add("host1")
        training.lose(1)

    scene.training.faults[7] = once(gone)
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert list(exclusions.of_user()) == []  # a node that is away may come back


def test_agent_that_nobody_knew_to_have_started_is_killed_before_another_starts() -> None:
    scene = Scene()
    strays = []

    def half_started(training: FakeTraining) -> None:
        training.lose(1)
        node = scene.cluster.nodes("run", 2)[1]
        strays.append(scene.cluster.start(node, Command("agent", ("python",), {})))

    scene.training.faults[7] = once(half_started)
    assert scene.supervise().state == "finished"
    assert [stray.code for stray in strays] == [-signal.SIGKILL]


def test_silence_of_a_node_is_told_and_is_no_death() -> None:
    scene = Scene()
    scene.at(5.0, lambda: scene.cluster.quiet.add("host1"))
    scene.at(15.0, lambda: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert scene.noted("host1 does not answer: waiting for it")
    assert scene.noted("host1 answers again")
    assert len(scene.cluster.started("agent")) == 2


def test_node_that_is_cut_off_for_good_gives_its_place_to_another() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = cut(scene, "host1")
    scene.training.faults[20] = once(lambda t: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert scene.noted("lost: host1 was silent for 30 s, and is given up")
    old, new = scene.cluster.started("agent", "host1")[0], scene.cluster.started("agent", "host2")[0]
    assert new.started - scene.training.began[0][0] > 30
    assert len(scene.cluster.started("agent", "host0")) == 1, "who stays is left alone"
    assert old.code == -signal.SIGKILL, "what was given up is killed when its node answers again"
    assert list(exclusions.of_user()) == []


def test_node_that_is_cut_off_is_waited_for_when_there_is_no_other() -> None:
    scene = Scene("silent_s=30", hosts=2)
    scene.training.faults[7] = cut(scene, "host1")

    def heal() -> None:
        scene.cluster.quiet.clear()
        scene.training.out.clear()
        back = scene.cluster.running("agent")[1].node
        scene.cluster.append(back, "agent.log", "02:12:00 agent 7: round 1: node rank 1 of 2\n")

    scene.at(2000.0, heal)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert not scene.noted("hang"), "who waits does not hang"


def test_agent_that_is_silent_for_good_on_a_node_that_answers_is_started_anew() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = once(lambda t: t.out.add(scene.cluster.running("agent")[1].pid))
    assert scene.supervise().state == "finished"
    assert [p.code for p in scene.cluster.started("agent", "host1")] == [-signal.SIGKILL, 0]
    assert scene.cluster.started("agent", "host2") == []


def test_run_that_waits_for_room_does_not_hang() -> None:
    scene = Scene("capacity.base_s=200", "capacity.cap_s=200")
    scene.training.faults[7] = once(lambda t: t.fail("OSError: [Errno 28] No space left on device"))
    assert scene.supervise().state == "finished"
    assert max(gaps(scene)) > 100
    assert not scene.noted("hang")


def test_agents_meet_anew_when_the_node_that_they_met_on_is_given_up() -> None:
    scene = Scene("silent_s=30")
    scene.training.faults[7] = cut(scene, "host0")
    scene.training.faults[20] = once(lambda t: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert met_at(scene, "host1", "host2") == {"host1"}
    assert len(scene.cluster.started("agent", "host1")) == 1, "it is told, and goes on"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []


@pytest.mark.parametrize("said", ["cut off: no answer from the store that agents meet in for 3.1 s", ""])
def test_store_on_a_node_that_nobody_reaches_is_started_elsewhere_at_once(said: str) -> None:
    scene = Scene("silent_s=500", hosts=2)

    def away(training: FakeTraining) -> None:
        cut(scene, "host0")(training)
        other = scene.cluster.running("agent")[1]
        if said:
            scene.cluster.append(other.node, "agent.log", f"02:08:48 agent 7: {said}\n")
        scene.at(60.0, scene.cluster.quiet.clear)
        scene.at(61.0, training.out.clear)

    scene.training.faults[7] = once(away)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert met_at(scene) == ({"host1"} if said else {"host0"})
    told = scene.cluster.started("endpoint")
    assert [p.node.name for p in told] == (["host1", "host0"] if said else []), "one of them when it answers again"
    assert not said or told[0].started - scene.training.began[0][0] < 20


def test_node_that_is_silent_to_the_supervisor_alone_is_not_given_up() -> None:
    scene = Scene("silent_s=10")
    scene.at(10.0, lambda: scene.cluster.quiet.add("host1"))
    scene.at(40.0, lambda: scene.cluster.quiet.clear())
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert len(scene.training.began) == 1


def test_node_that_leaves_after_a_notice_gives_its_place_to_another() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: scene.cluster.running("agent")[1].end(75))
    assert scene.supervise().state == "finished"
    assert scene.noted("host2 takes the place of host1")
    assert scene.noted("preemption: host1 left after a notice")
    assert len(scene.cluster.started("agent", "host0")) == 1


def test_of_nodes_whose_workers_left_together_the_one_that_goes_is_named() -> None:
    scene = Scene()

    def told(training: FakeTraining) -> None:
        staying, going = scene.cluster.running("agent")
        training.die(75)
        scene.cluster.append(going.node, "agent.log", f"02:08:48 agent 7: {LEAVES}\n")
        scene.at(10.0, lambda: going.end(75))  # its last lines take long to ship

    scene.training.faults[7] = once(told)
    assert scene.supervise().state == "finished"
    assert [n for n in scene.notes if "preemption" in n] == ["preemption: host1 left after a notice; try 1 of 1000"]
    assert scene.noted("host2 takes the place of host1")


def test_node_that_comes_back_is_waited_for_when_there_is_no_other() -> None:
    scene = Scene(hosts=2)

    def gone(training: FakeTraining) -> None:
        scene.cluster.down.add("host1")
        training.lose(1)
        scene.at(30.0, lambda: scene.cluster.down.clear())

    scene.training.faults[7] = once(gone)
    assert scene.supervise().state == "finished"


def met_at(scene: Scene, *hosts: str) -> set[str]:
    """Return where the agents met that were started last on each host, or on some."""
    newest = {p.node.name: p.endpoint for p in scene.cluster.started("agent") if p.node.name in hosts or not hosts}
    return {e.removeprefix("--rdzv-endpoint=").rpartition(":")[0] for e in newest.values()}


def test_another_store_is_ready_once_training_goes_on_and_takes_over_at_once() -> None:
    scene = Scene()
    ready: list[list[str]] = []

    def lose(training: FakeTraining) -> None:
        ready.append([p.node.name for p in scene.cluster.running("rendezvous")])
        training.lose_store()

    scene.training.faults[7] = once(lose)
    scene.training.faults[20] = once(lambda t: ready.append([p.node.name for p in scene.cluster.running("rendezvous")]))
    assert scene.supervise().state == "finished"
    assert ready == [["host0", "host1"], ["host1", "host0"]], "and then there is another again"
    assert scene.cluster.running("rendezvous") == []


@pytest.mark.parametrize("lasting", [True, False])
def test_store_that_is_ready_is_on_a_node_that_lives(lasting: bool) -> None:
    scene = Scene(hosts=3, lasting=lasting)
    scene.training.faults[7] = once(lambda t: scene.cluster.running("rendezvous")[-1].end(-signal.SIGKILL))
    assert scene.supervise().state == "finished"
    stores = [p.node.name for p in scene.cluster.started("rendezvous")]
    assert stores == (["host0", "host1", "host1"] if lasting else ["host0", "host1"])


def test_agents_of_a_dead_rendezvous_are_told_of_another() -> None:
    scene = Scene()
    scene.training.faults[7] = once(lambda t: t.lose_store())
    assert scene.supervise().state == "finished"
    assert met_at(scene) == {"host1"}
    assert len(scene.cluster.started("agent")) == 2
    assert scene.noted("lost: the rendezvous store is lost: agents meet again on host1")


def test_loss_of_the_first_node_leaves_the_agents_of_the_others_alone() -> None:
    scene = Scene()

    def lose(training: FakeTraining) -> None:
        training.lose_store()
        training.lose(0)

    scene.training.faults[7] = once(lose)
    assert scene.supervise().state == "finished"
    assert met_at(scene) == {"host1"}
    assert len(scene.cluster.started("agent", "host0")) == 2
    assert len(scene.cluster.started("agent", "host1")) == 1
    [told] = scene.cluster.started("endpoint")
    assert told.node.name == "host1"
    assert told.command.argv[5:] == ("host0",), "it need not wait for who is known to be gone"
    assert len([n for n in scene.notes if n.startswith("lost: ")]) == 1, "it is one incident"


def test_dead_rendezvous_without_another_place_makes_all_begin_anew() -> None:
    scene = Scene(hosts=2)

    def lose(training: FakeTraining) -> None:
        training.lose_store()
        for spare in scene.cluster.running("rendezvous"):
            spare.end(-signal.SIGKILL)
        scene.cluster.down |= {"host0", "host1"}
        scene.at(20.0, scene.cluster.down.clear)

    scene.training.faults[7] = once(lose)
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 4

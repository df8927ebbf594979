"""The supervisor on a fake cluster whose clock tests move: back-off, refill, poison, hangs, requests."""

from __future__ import annotations

import itertools
import re
import signal
from pathlib import Path

import pytest

from launcher.outcome import Outcome
from launcher.status import live_state, read_status
from tests.launcher.scene import Scene, gaps, once
from tests.testbed.fake_training import FakeTraining


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def test_run_without_trouble_finishes_and_leaves_nothing() -> None:
    scene = Scene()
    assert scene.supervise() == Outcome("finished", 0)
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    assert live_state(read_status(scene.runs), scene.runs) == "finished"
    assert [p.node.name for p in scene.cluster.started("agent")] == ["host0", "host1"]


def test_only_the_agent_that_died_is_started_again() -> None:
    scene = Scene()
    scene.training.faults[7] = lambda t: t.lose(1) if t.attempt == 1 else None
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert len(scene.cluster.started("agent", "host1")) == 2
    assert scene.training.began[1][1] == 5


def trouble(scene: Scene, host: str, *, ends: bool) -> None:
    """From now on a host answers, and cannot tell of its agent, nor kill it."""
    for process in scene.cluster.running("agent"):
        if process.node.name == host:
            process.trouble = "[Errno 116] Stale file handle"
            if ends:
                process.end(-signal.SIGKILL)


def test_agent_that_its_node_cannot_tell_of_is_lost_and_started_again() -> None:
    scene = Scene()
    scene.training.faults[7] = lambda t: trouble(scene, "host1", ends=True) if t.attempt == 1 else None
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent", "host0")) == 1
    assert len(scene.cluster.started("agent", "host1")) == 2
    assert scene.noted("host1 is taken for lost: host1: [Errno 116] Stale file handle")


def test_node_that_cannot_kill_does_not_keep_the_others_running() -> None:
    scene = Scene()

    def stop(training: FakeTraining) -> None:
        trouble(scene, "host0", ends=False)
        scene.runs.create("stop", {})

    scene.training.faults[7] = stop
    assert scene.supervise().state == "stopped"
    assert [p.node.name for p in scene.cluster.running("agent")] == ["host0"]
    assert not scene.cluster.running("rendezvous")
    assert scene.noted("host0: [Errno 116] Stale file handle")


def test_poison_step_ends_the_run_with_its_traceback() -> None:
    scene = Scene()
    met: list[int] = []
    scene.training.faults[8] = lambda t: (met.append(t.attempt), t.fail("ValueError: label 7"))[1]
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "failed twice at the same place: ValueError: label 7" in outcome.message
    assert outcome.traceback == "Traceback of ValueError: label 7"
    assert met == [1, 2]


def test_users_mistake_ends_the_run_at_once_with_2() -> None:
    scene = Scene()
    scene.training.faults[3] = lambda t: t.fail("no such folder", kind="user")
    assert scene.supervise() == Outcome("failed", 2, "no such folder")
    assert len(scene.training.began) == 1


def test_delays_grow_until_the_budget_is_spent() -> None:
    scene = Scene("lost.tries=6", "lost.free=2", "lost.base_s=8", "lost.cap_s=1000")
    scene.training.commits = False
    scene.training.faults[2] = lambda t: t.die(-signal.SIGKILL, 1)
    outcome = scene.supervise()
    assert outcome.state == "failed"
    assert "lost, 7 times without progress past step 0" in outcome.message
    waits = [float(found[1]) if (found := re.search(r", in ([\d.]+) s", n)) else 0.0 for n in scene.notes]
    assert waits[:2] == [0.0, 0.0]
    assert len(waits) == 6
    for number, wait in enumerate(waits[2:]):
        assert 8 * 2**number / 2 <= wait <= 8 * 2**number
    kept_down = [gap for gap in gaps(scene) if gap > 7]
    assert len(kept_down) == 4
    assert all(gap >= wait for gap, wait in zip(kept_down, waits[2:], strict=True))


def test_progress_refills_the_budget() -> None:
    scene = Scene("lost.tries=1")
    for step in (6, 12, 18, 24, 33):
        scene.training.faults[step] = lambda t: t.die(-signal.SIGKILL)
    scene.training.faults = {s: once(f) for s, f in scene.training.faults.items()}
    assert scene.supervise().state == "finished"
    assert [step for _, step in scene.training.began] == [0, 5, 10, 15, 20, 30]


def test_errors_that_differ_are_tried_as_often_as_their_budget_says() -> None:
    scene = Scene("error.tries=3")
    numbers = itertools.count()
    scene.training.commits = False
    scene.training.faults[2] = lambda t: t.fail(f"RuntimeError: {next(numbers)}")
    outcome = scene.supervise()
    assert "error, 4 times" in outcome.message
    assert outcome.traceback == "Traceback of RuntimeError: 3"


def test_frozen_rank_is_noticed_named_and_killed() -> None:
    scene = Scene()

    def kill_the_frozen() -> None:  # what fgtrain.unhang does on a node
        for process in scene.cluster.started("unhang"):
            if "--kill" in process.command.argv and scene.training.frozen:
                scene.training.frozen = set()
                scene.training.die(-signal.SIGKILL, 1)

    scene.training.faults[12] = once(lambda t: t.frozen.add(1))
    scene.clock.watchers.append(kill_the_frozen)
    assert scene.supervise().state == "finished"
    assert scene.noted("rank 1 on host1 hangs (step 12, exchange)")
    assert scene.noted("hang: rank 1 on host1 hangs")
    asked = {p.node.name: p.command.argv[4:] for p in scene.cluster.started("unhang")}
    assert asked == {"host0": (), "host1": ("--kill", "0")}


def test_stop_request_is_obeyed_and_those_before_it_are_not() -> None:
    scene = Scene()
    scene.runs.write("stop", {"asked": 0})
    scene.at(15.0, lambda: scene.runs.write("stop", {"asked": 1}))
    assert scene.supervise() == Outcome("stopped", 0, "stopped on request")
    assert scene.training.committed == 10
    assert scene.cluster.running("agent") == []

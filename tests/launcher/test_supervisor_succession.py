"""Supervisors that die, are succeeded, or meet another: take-over and fencing, on a fake cluster."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fgtrain.plan import World
from fgtrain.runstore import Failure
from launcher.outcome import EXIT_FENCED, Outcome
from launcher.status import live_state, read_status
from launcher.takeover import last_term, take_office
from tests.launcher.scene import Scene, killed_at


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def test_agents_that_outlive_their_supervisor_are_taken_over() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    agents = scene.cluster.running("agent")
    assert len(agents) == 2
    assert scene.supervise().state == "finished"
    assert scene.cluster.started("agent") == agents  # no other was started
    assert len(scene.training.began) == 1
    assert scene.noted("taking over from supervisor 1")
    term = last_term(scene.runs)
    assert term is not None
    assert term.number == 2
    assert scene.cluster.running("rendezvous") == []


def test_run_that_finished_without_a_supervisor_is_finished() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    for _ in range(300):
        scene.clock.sleep(0.2)
    assert scene.cluster.running("agent") == []
    assert scene.cluster.running("rendezvous")
    assert scene.supervise().state == "finished"
    assert len(scene.cluster.started("agent")) == 2
    assert scene.cluster.running("rendezvous") == []
    assert len(scene.cluster.started("forget")) == 2  # what the nodes' memory held is freed


def test_agents_of_another_world_are_killed_before_the_run_goes_on() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    old = scene.cluster.running("agent")
    scene.world = World(2, 2)
    assert scene.supervise().state == "finished"
    assert {p.code for p in old} == {-signal.SIGKILL}
    assert len(scene.cluster.started("agent")) == 4


def test_on_a_cluster_where_nothing_lasts_all_begins_anew() -> None:
    scene = Scene(lasting=False)
    killed_at(scene, 20.0)
    for process in scene.cluster.processes:
        process.kill()
    assert scene.supervise().state == "finished"
    assert scene.training.began[1][1] > 0


def test_fenced_supervisor_stops_acting_and_leaves_the_agents_to_the_other() -> None:
    scene = Scene()
    seen: list[Outcome] = []

    def second() -> None:
        seen.append(scene.supervise())

    scene.at(20.0, second)
    first = scene.supervise()
    assert [o.state for o in seen] == ["finished"]
    assert len(scene.cluster.started("agent")) == 2
    assert (first.state, first.exit_code) in (("fenced", EXIT_FENCED), ("finished", 0))
    assert live_state(read_status(scene.runs), scene.runs) == "finished"


def test_supervisor_that_lost_its_office_does_nothing_more() -> None:
    scene = Scene()
    scene.at(20.0, lambda: take_office(scene.runs, "lab", scene.world) and None)
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("fenced", EXIT_FENCED)
    assert "supervisor 2 on " in outcome.message
    assert len(scene.cluster.running("agent")) == 2
    assert scene.cluster.running("rendezvous")
    assert scene.cluster.started("forget") == []
    status = read_status(scene.runs)
    assert status is not None
    assert status.state == "running"


def test_what_fails_because_another_has_taken_over_is_no_failure_of_the_run() -> None:
    scene = Scene()

    def replaced() -> None:
        take_office(scene.runs, "lab", scene.world)
        failure = Failure(attempt=1, rank=0, time=scene.clock.time(), kind="user", message="no", traceback="")
        scene.runs.write("errors/00001-00000-1.json", failure)

    scene.at(22.0, replaced)  # between two looks at who holds the office
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("fenced", EXIT_FENCED)


def test_fenced_supervisor_takes_its_own_agents_along_where_nothing_lasts() -> None:
    scene = Scene(lasting=False)
    scene.at(20.0, lambda: take_office(scene.runs, "local", scene.world) and None)
    assert scene.supervise().state == "fenced"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    assert scene.cluster.started("forget") == []  # the other's snapshots in memory stay

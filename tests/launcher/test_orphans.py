"""A run that goes on on another cluster: nothing of it stays on the old one, and nothing there gets in its way."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from cluster import Node, Owner, Unreachable
from fgtrain.lease import LEASE, Lease, hear
from launcher import orphans
from launcher.outcome import EXIT_FENCED
from launcher.ownership import owner_of
from launcher.status import read_status
from launcher.supervisor import Supervisor
from launcher.takeover import Term, last_term, take_office
from tests.launcher.scene import Scene
from tests.launcher.test_supervisor_succession import killed_at
from tests.testbed.fake_training import FakeClock, FakeCluster, FakeProcess, FakeTraining, RentingCluster


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "none.toml"))


class Severed(FakeCluster):
    """A cluster some of whose nodes nobody can ask for what runs there."""

    def __init__(self, clock: FakeClock, hosts: int, away: tuple[str, ...] = ()) -> None:
        super().__init__(clock, hosts)
        self.away = set(away)

    def find(self, node: Node, name: str) -> FakeProcess | None:
        if node.name in self.away or node.name not in self.hosts:
            raise Unreachable(f"{node.name} does not answer")
        return super().find(node, name)


def orphaned(**settings: Any) -> tuple[Scene, Term]:
    """A run whose supervisor was killed, and whose agents go on."""
    scene = Scene(**settings)
    killed_at(scene, 20.0)
    term = last_term(scene.runs)
    assert term is not None
    assert len(scene.cluster.running("agent")) == 2
    return scene, term


def owner(scene: Scene) -> Owner:
    return owner_of(scene.run, scene.runs.store.url)


def opens(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> None:
    monkeypatch.setattr(orphans, "find_cluster", lambda name, project: cluster)


def test_agents_are_asked_to_leave_and_what_is_left_is_killed() -> None:
    scene, term = orphaned()
    agents = scene.cluster.running("agent")
    assert orphans.end(scene.cluster, owner(scene), term.nodes) == []
    assert {p.code for p in agents} == {-signal.SIGTERM}
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    scene, term = orphaned()
    scene.cluster.gentle = True  # they need longer for their last snapshot than they have
    assert orphans.end(scene.cluster, owner(scene), term.nodes) == []
    assert scene.cluster.running("agent") == []


def test_what_cannot_be_reached_is_named_and_the_others_are_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, term = orphaned(cluster=lambda clock: Severed(clock, 3))
    assert isinstance(scene.cluster, Severed)
    scene.cluster.away = {"host1"}
    opens(monkeypatch, scene.cluster)
    orphans.leave(scene.run, owner(scene), term, lost=True)
    assert [p.node.name for p in scene.cluster.running("agent")] == ["host1"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: run leaves lab, whose host1 cannot be reached from here; ")


def test_cluster_that_is_not_known_here_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    scene, term = orphaned()
    orphans.leave(scene.run, owner(scene), term, lost=True)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: run leaves lab, which cannot be asked from here (--cluster lab: ")
    orphans.leave(scene.run, owner(scene), term, lost=False)  # its supervisor has left nothing
    assert capsys.readouterr().err == ""


def test_rented_machines_are_given_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scene, term = orphaned(cluster=lambda clock: RentingCluster(clock, 3))
    opens(monkeypatch, scene.cluster)
    assert isinstance(scene.cluster, RentingCluster)
    assert scene.cluster.held("run")
    orphans.leave(scene.run, owner(scene), term, lost=True)
    assert scene.cluster.held("run") is None
    assert scene.cluster.running("agent") == []
    assert capsys.readouterr().err == ""
    orphans.leave(scene.run, owner(scene), term, lost=True)
    assert "may have machines that were not rented from here" in capsys.readouterr().err


def leases(cluster: FakeCluster, scene: Scene) -> list[str | None]:
    """Return what the agents' leases say now."""
    terms = [int(p.command.env[LEASE].split(" ")[1]) for p in cluster.running("agent")]
    return [Lease(900.0, scene.clock.now(), term).verdict(hear(scene.runs), scene.clock.now()) for term in terms]


def test_agents_of_a_cluster_that_was_left_do_not_live_by_the_next_supervisors_heartbeat() -> None:
    scene, _ = orphaned(steps=1000)
    other = Severed(scene.clock, 3)
    other.hosts = ["x0", "x1", "x2"]
    training = FakeTraining(other, scene.runs, scene.world, 40)
    training.attempt = 1
    seen: list[tuple[list[str | None], list[str | None]]] = []
    scene.at(20.0, lambda: seen.append((leases(scene.cluster, scene), leases(other, scene))))
    parts = (scene.run, scene.runs, "other", other, scene.world, scene._show, None, scene.clock)
    supervisor = Supervisor(*parts)
    scene.at(25.0, lambda: scene.runs.write("stop", {}))
    assert supervisor.supervise().state == "stopped"
    assert len(scene.cluster.running("agent")) == 2, "nobody reaches them"
    [(old, new)] = seen
    assert old == ["supervisor 2 goes on with the run, and not with what supervisor 1 began"] * 2
    assert new == [None] * 2
    assert len(training.began) == 1


def test_agents_that_are_taken_over_live_by_the_next_supervisors_heartbeat() -> None:
    scene, _ = orphaned()
    killed_at(scene, 5.0)  # the second one
    seen: list[list[str | None]] = []
    scene.at(5.0, lambda: seen.append(leases(scene.cluster, scene)))
    assert scene.supervise().state == "finished"
    assert seen == [[None, None]]
    status, term = read_status(scene.runs), last_term(scene.runs)
    assert status is not None
    assert term is not None
    assert (term.number, term.heir_of, status.since) == (3, 1, 1)


def test_supervisor_whose_run_goes_on_on_another_cluster_takes_its_agents_along() -> None:
    scene = Scene()
    scene.at(20.0, lambda: take_office(scene.runs, "other", scene.world) and None)
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("fenced", EXIT_FENCED)
    assert outcome.needs_no_nodes, "rented machines are given back"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []


def test_machines_that_another_run_of_the_name_has_by_now_are_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, term = orphaned(cluster=lambda clock: RentingCluster(clock, 3))
    opens(monkeypatch, scene.cluster)
    for process in scene.cluster.processes:
        process.end(-signal.SIGKILL)
    theirs = owner(scene)._replace(id="another", store="file:///other")
    for node in term.nodes:
        scene.cluster.claim(node, theirs)
        scene.cluster.start(node, scene.cluster.started("agent")[0].command)
    orphans.leave(scene.run, owner(scene), term, lost=True)
    assert scene.cluster.held("run")
    assert len(scene.cluster.running("agent")) == 2

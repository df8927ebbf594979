"""Runs of one name in different stores: neither touches what is the other's, and what is left of one is no obstacle."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cluster import Occupied
from fgtrain.runstore import RunFile
from launcher import orphans
from launcher.fleet import still_runs
from launcher.foreground import make_ready
from launcher.ownership import owner_of
from launcher.takeover import last_term
from tests.fgtrain.test_runstore import run_file
from tests.launcher.scene import Scene, once
from tests.launcher.test_supervisor_succession import killed_at


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def beside(scene: Scene, *, trains: bool = False) -> Scene:
    """Return a run of the same name in another store, on the same hosts; one of the two trains from now on."""
    other = Scene(cluster=lambda clock: scene.cluster)
    other.clock = scene.clock
    scene.clock.watchers.remove((scene if trains else other).training._move)
    return other


def lose_all(scene: Scene) -> None:
    for process in scene.cluster.processes:
        process.end(-signal.SIGKILL)


def ready(scene: Scene) -> None:
    make_ready(scene.run, scene.runs, "lab", scene.cluster, scene.world)


def test_second_run_of_a_name_is_refused_before_it_touches_anything() -> None:
    first = Scene()
    killed_at(first, 20.0)
    agents, second = first.cluster.running("agent"), beside(first)
    why = f"host0: a run called run, of {first.runs.store.url}, is at work there: choose another --name"
    with pytest.raises(Occupied, match=why):
        ready(second)
    outcome = second.supervise()
    assert (outcome.state, why in outcome.message) == ("failed", True)
    assert first.cluster.running("agent") == agents
    assert first.supervise().state == "finished"
    assert first.cluster.started("agent") == agents


def test_what_is_left_of_an_earlier_run_of_the_name_is_cleared_away() -> None:
    first = Scene()
    killed_at(first, 20.0)
    lose_all(first)  # and its store is removed
    second = beside(first, trains=True)
    first.cluster.append(first.cluster.nodes("run", 1)[0], "notice.json", "{}")
    ready(second)
    assert {name for _, name in first.cluster.files} == {"owner.json"}
    ready(second)
    assert second.supervise().state == "finished"


def test_run_goes_on_where_it_was() -> None:
    scene = Scene()
    killed_at(scene, 20.0)
    lose_all(scene)
    before = scene.cluster.files[scene.cluster.nodes("run", 1)[0].folder, "agent.log"]
    ready(scene)
    assert scene.cluster.files[scene.cluster.nodes("run", 1)[0].folder, "agent.log"] == before
    assert scene.supervise().state == "finished"


def test_nodes_that_another_run_has_taken_meanwhile_are_left_to_it() -> None:
    """The first run's agents are gone, and with them its claim; neither a take-over nor a stop takes the others."""
    first = Scene()
    killed_at(first, 20.0)
    lose_all(first)
    second = beside(first, trains=True)
    killed_at(second, 20.0)
    theirs = first.cluster.running("agent") + first.cluster.running("rendezvous")
    assert theirs
    term = last_term(first.runs)
    assert term is not None
    owner = owner_of(first.run, first.runs.store.url)
    assert not still_runs(first.cluster, term, owner)
    assert orphans.end(first.cluster, owner, term.nodes) == []
    assert first.supervise().state == "failed"
    assert first.cluster.running("agent") + first.cluster.running("rendezvous") == theirs


def test_run_that_waits_before_it_starts_again_does_not_kill_who_came_meanwhile() -> None:
    first = Scene("error.free=0", "error.base_s=60")
    second = beside(first)
    theirs: list[object] = []

    def come() -> None:
        if not theirs and not first.cluster.running("agent"):
            for node in first.cluster.nodes("run", 2):
                first.cluster.claim(node, owner_of(second.run, second.runs.store.url))
                command = first.cluster.started("agent")[0].command
                theirs.append(first.cluster.start(node, command))

    first.training.faults[10] = once(lambda t: t.fail("broken"))
    first.at(25.0, come)
    outcome = first.supervise()
    assert outcome.state == "failed"
    assert "is at work there" in outcome.message
    assert first.cluster.running("agent") == theirs


def test_run_from_before_there_were_identities_is_told_by_its_beginning() -> None:
    old = run_file()
    assert owner_of(old, "file:///a") == ("0.000000", "run", "file:///a", True)
    new = RunFile(**{f: getattr(old, f) for f in old.__struct_fields__} | {"id": "1f"})
    assert owner_of(new, "file:///a") == ("1f", "run", "file:///a", False)

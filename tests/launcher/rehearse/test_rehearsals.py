"""Rehearsals with real agents: nodes that come and go under a run, and the whole command."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain.plan import World
from fgtrain.stores import open_store
from launcher.events import Event
from launcher.prepare import prepare, register
from launcher.rehearse.replay import RehearsalCluster
from launcher.supervisor import Supervisor
from tests.testbed.runs import ROOT, Runs

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

TOLERANCE = 0.2
"""How far the model's goodput may be from the run's that its costs were measured on: docs/rehearse.md says so."""


@pytest.mark.chaos
def test_agent_of_a_lost_node_waits_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock decides here: the node goes at the third step, and is back once the supervisor has seen it gone."""
    monkeypatch.setenv("FGLAUNCH_MEMORY", str(tmp_path / "memory"))
    monkeypatch.chdir(ROOT)
    settings = ["epochs=2", "loader.workers=0", "snapshots.memory_steps=1", "snapshots.seconds=null"]
    world = World(2, 1)
    run, _ = prepare("recipes/quickstart.py", settings, world, "rehearsed")
    stage = RehearsalCluster(tmp_path / "work", ROOT, run)
    nodes = stage.nodes(run.name, world.nodes)
    seen: list[Event] = []
    for node in nodes:
        stage.make_ready(node)
        stage.come(node)

    def show(event: Event) -> None:
        seen.append(event)
        if event["event"] == "step" and event["step"] >= 3 and not any(e.get("lost") for e in seen):
            seen.append({"event": "test", "lost": True})
            stage.lose(nodes[1])
        if event["event"] == "note" and "node1" in event["text"] and "died" in event["text"]:
            stage.come(nodes[1])

    runs = register(run, open_store(f"file://{tmp_path}/store"))
    outcome = Supervisor(run, runs, stage.name, stage, world, show, None).supervise()
    assert outcome.state == "finished", outcome
    attempts = [e for e in seen if e["event"] == "attempt"]
    assert len(attempts) == 2
    assert attempts[1]["step"] > 0  # from the memory of the node that stayed


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    found = Runs(tmp_path)
    yield found
    assert found.processes() == []
    found.end()


@pytest.mark.chaos
def test_rehearsal_accounts_for_all_its_time_and_the_model_agrees(runs: Runs, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"metadata": {"gap_seconds": 60}, "data": [3] * 18 + [2] * 14}))
    settings = ("--set", "epochs=1e4", "--set", "loader.workers=0", "--set", "evaluate.every_epochs=0")
    report = runs.json("rehearse", "recipes/quickstart.py", "--trace", str(trace), "--price", "2", *settings)
    real, model, best, optimum = report["lines"]
    assert (real["name"], optimum["name"]) == ("this rehearsal", "offline optimum")
    for line in report["lines"]:
        parts = sum(line[f"{part}_s"] for part in ("useful", "lost", "restart", "overhead", "waiting"))
        assert parts == pytest.approx(optimum["useful_s"] + optimum["restart_s"] + optimum["waiting_s"], abs=0.5)
        assert 0 <= line["goodput"] <= 1
    assert model["goodput"] <= best["goodput"] + 1e-6
    assert abs(real["goodput"] - model["goodput"]) <= TOLERANCE
    assert report["cost"] == pytest.approx(2 * report["node_hours"])
    assert not list(Path(runs.store.removeprefix("file://")).glob("runs/*"))  # a rehearsal keeps nothing


@pytest.mark.chaos
@pytest.mark.parametrize("notice", [(), ("--notice", "5")])
def test_nodes_of_a_trace_join_and_leave_an_elastic_run(runs: Runs, tmp_path: Path, notice: tuple[str, ...]) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"metadata": {"gap_seconds": 2700}, "data": [1, 2, 1, 2]}))
    settings = ("--set", "epochs=1e4", "--set", "loader.workers=0", "--set", "evaluate.every_epochs=0")
    words = ("--trace", str(trace), "--nodes", "1:2", "--gpus", "1", *notice)
    done = runs.call("rehearse", "recipes/quickstart.py", *words, *settings)
    assert done.returncode == 0, done.stderr
    worlds = [int(n) for n in re.findall(r"attempt \d+: from .*, (\d) processes", done.stderr)]
    changes = [pair for pair in itertools.pairwise(worlds) if pair[0] != pair[1]]
    assert worlds[0] == 1
    assert changes == [(1, 2), (2, 1), (1, 2)], done.stderr
    assert ("left after a notice" in done.stderr) == bool(notice)

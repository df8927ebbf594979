"""Limits as the supervisor keeps them, on a fake cluster and its clock; and the lease that its nodes get."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgtrain.lease import LEASE, read_spend
from fgtrain.limits import Limits
from launcher.money import Prices, Terms
from launcher.outcome import Outcome
from launcher.status import read_status
from tests.launcher.scene import Scene


@pytest.fixture(autouse=True)
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "clusters.toml"
    file.write_text('[lab]\nkind = "ssh"\nprice_per_node_hour = 1800\nlease_s = 300\n')
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(file))
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def test_run_ends_when_its_money_is_spent_and_goes_on_when_there_is_more() -> None:
    scene = Scene()
    scene.runs.write("limits.json", Limits(max_cost=20.0))  # two nodes cost one a second, and a run takes 40 steps
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("stopped", 1)
    assert outcome.message.startswith("--max-cost 20 is reached: 2")
    assert outcome.needs_no_nodes, "rented machines are given back"
    assert scene.cluster.running("agent") == scene.cluster.running("rendezvous") == []
    spent = read_spend(scene.runs).cost
    assert spent is not None
    assert 20 <= spent < 23
    scene.runs.write("limits.json", Limits(max_cost=500.0))
    assert scene.supervise() == Outcome("finished", 0)
    after = read_spend(scene.runs).cost
    assert after is not None
    assert after > spent


def test_run_that_is_gone_on_with_goes_on_from_its_newest_snapshot_for_the_meter_and_all_who_watch() -> None:
    scene = Scene()
    scene.runs.write("limits.json", Limits(max_cost=20.0))
    assert scene.supervise().state == "stopped"
    committed, seen = scene.training.committed, list[int]()
    assert committed >= 10
    scene.runs.write("limits.json", Limits(max_cost=500.0))

    def look() -> None:
        status = read_status(scene.runs)
        assert status is not None
        seen.extend((status.step, read_spend(scene.runs).step) if status.state == "running" else ())

    scene.clock.watchers.append(look)
    assert scene.supervise() == Outcome("finished", 0)
    assert min(seen) >= committed


def test_terms_that_the_launching_machine_has_told_count_where_nobody_has_a_clusters_toml(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "none.toml"))
    scene = Scene()
    scene.terms = Terms(Prices(1800.0, 1800.0), 300.0)
    scene.runs.write("limits.json", Limits(max_cost=20.0))
    outcome = scene.supervise()
    assert outcome.message.startswith("--max-cost 20 is reached: 2")


def test_run_that_is_asked_to_stop_may_soon_go_on_with_its_nodes() -> None:
    scene = Scene()
    scene.at(10.0, lambda: scene.runs.write("stop", {}))
    outcome = scene.supervise()
    assert outcome.state == "stopped"
    assert not outcome.needs_no_nodes


def test_time_without_a_supervisor_is_not_counted() -> None:
    scene = Scene()
    scene.runs.write("limits.json", Limits(max_hours=1.0))
    scene.clock.sleep(7200.0)
    assert scene.supervise().state == "finished"


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_cost=20.0), "--max-cost 20 is reached: 2"),
        (Limits(max_hours=0.005), "--max-hours 0.005 is reached after 0.01 h"),
    ],
)
def test_run_that_reaches_a_limit_ends_at_a_step_boundary_with_a_commit_and_says_why(limits: Limits, why: str) -> None:
    scene = Scene()
    scene.cluster.gentle, scene.training.commits = True, False  # but for the last one
    scene.runs.write("limits.json", limits)
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("stopped", 1)
    assert outcome.message.startswith(why)
    assert [p.code for p in scene.cluster.started("agent")] == [75, 75], "nobody is killed"
    assert scene.training.committed == scene.training.step
    assert scene.training.committed > 10
    status = read_status(scene.runs)
    assert status is not None
    assert (status.state, status.message, status.exit_code) == ("stopped", outcome.message, 1)


def test_run_that_takes_no_step_lets_its_nodes_go() -> None:
    scene = Scene("watchdog.floor_s=100000")
    scene.runs.write("limits.json", Limits(max_idle_hours=0.05))
    scene.training.faults[7] = lambda t: t.frozen.update({0, 1})
    outcome = scene.supervise()
    assert (outcome.state, outcome.exit_code) == ("stopped", 1)
    assert outcome.message.startswith("--max-idle 0.05: no step for 0.05 h")
    assert scene.cluster.running("agent") == []


def test_what_lasts_has_a_lease() -> None:
    scene = Scene()
    scene.supervise()
    for name in ("agent", "rendezvous"):
        for process in scene.cluster.started(name):
            assert process.command.env[LEASE].startswith("300 1 run memory://")
    passing = Scene(lasting=False)
    passing.supervise()
    assert all(LEASE not in p.command.env for p in passing.cluster.started("agent"))

"""Spot or on-demand in a live run: asked for at each renting so that the deadline is met, and counted by its price."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.lease import read_spend
from fgtrain.limits import Limits
from launcher.buying import Aim, Pace, Pacer, wanted
from launcher.deadline import Capacity
from launcher.outcome import Outcome
from launcher.supervision import KEY, Supervision, changed
from tests.launcher.scene import Scene
from tests.testbed.fake_training import FakeTraining, RentingCluster

AIM = Aim(steps=1000, begun=0.0, deadline=2000.0)
PACE = Pace(step_s=1.0, changeover_s=50.0)


@pytest.fixture(autouse=True)
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "clusters.toml"
    file.write_text('[lab]\nkind = "ssh"\nprice_per_node_hour = { spot = 1800, on_demand = 5400 }\n')
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(file))
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))


def test_pace_is_learned_from_steps_and_not_from_what_lies_between_attempts() -> None:
    pacer = Pacer(Pace())
    pacer.rented(-30.0)
    for now, attempt, step in [(0, 0, 0), (40, 1, 1), (42, 1, 2), (46, 1, 4), (47, 1, 4)]:
        pacer.look(now, attempt, step)
    assert pacer.pace == Pace(step_s=2.0, changeover_s=70.0)
    for now, attempt, step in [(60, 1, 4), (100, 2, 4), (103, 2, 5), (105, 2, 6)]:
        pacer.look(now, attempt, step)
    assert pacer.pace == Pace(step_s=2.0, changeover_s=70.0), "the machines stayed"


def test_changeover_is_from_asking_for_the_machines_to_the_first_step_that_is_new() -> None:
    pacer = Pacer(Pace(changeover_s=100.0))
    pacer.look(0, 1, 50)
    for now in (10, 2000):  # they are lost, and waited for
        pacer.look(now, 1, 50, waits=True)
    pacer.rented(2000.0)
    for now, step in [(2040, 50), (2050, 45), (2070, 50), (2080, 51)]:  # launched; what was lost is done again
        pacer.look(now, 2, step)
    assert pacer.pace.changeover_s == pytest.approx(100.0 - 20.0 / 3)


def test_machines_that_are_lost_before_a_step_make_no_changeover() -> None:
    pacer = Pacer(Pace())
    pacer.look(0, 1, 50)
    pacer.rented(10.0)
    pacer.look(300, 1, 50)
    pacer.look(700, 1, 50, waits=True)
    pacer.rented(710.0)
    pacer.look(740, 2, 51)
    assert pacer.pace.changeover_s == 30.0


def test_one_long_changeover_is_forgotten_in_time() -> None:
    pacer = Pacer(Pace(changeover_s=5000.0))
    pacer.look(0, 1, 0)
    for number in range(1, 16):
        pacer.rented(100.0 * number)
        pacer.look(100.0 * number + 60, number + 1, number)
    assert pacer.pace.changeover_s == pytest.approx(60.0, rel=0.2)


@given(
    st.floats(0.0, 1000.0),
    st.lists(st.tuples(st.floats(0.1, 100.0), st.integers(0, 1), st.integers(0, 5), st.booleans()), max_size=40),
)
def test_changeover_is_within_what_was_seen_however_long_was_waited(
    known: float, moves: list[tuple[float, int, int, bool]]
) -> None:
    pacer, now, attempt, step, seen = Pacer(Pace(changeover_s=known)), 0.0, 1, 0, 0.0
    for pause, again, steps, waits in moves:
        now, attempt, step = now + pause, attempt + again, step + steps
        seen += 0.0 if waits else pause
        pacer.look(now, attempt, step, waits=waits)
        if again:
            pacer.rented(now)
        assert min(pacer.pace) >= 0
        assert pacer.pace.changeover_s <= max(known, seen) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("pace", "now", "step", "spot", "kind"),
    [
        pytest.param(Pace(), 0.0, 0, True, Capacity.SPOT, id="nothing known: spot"),
        pytest.param(Pace(), 0.0, 0, False, Capacity.ON_DEMAND, id="nothing known, no spot: on-demand"),
        pytest.param(PACE, 500.0, 400, True, Capacity.SPOT, id="ahead: spot"),
        pytest.param(PACE, 500.0, 400, False, Capacity.NONE, id="ahead, no spot: wait"),
        pytest.param(PACE, 500.0, 100, False, Capacity.ON_DEMAND, id="behind, no spot: on-demand"),
        pytest.param(PACE, 1500.0, 600, True, Capacity.ON_DEMAND, id="no time to lose: on-demand"),
        pytest.param(PACE._replace(changeover_s=0.0), 900.0, 400, True, Capacity.ON_DEMAND, id="changeover assumed"),
    ],
)
def test_kind_follows_the_policy(pace: Pace, now: float, step: int, spot: bool, kind: Capacity) -> None:
    assert wanted(AIM, pace, now, step, spot=spot) is kind


def scene(deadline_s: float | None) -> tuple[Scene, RentingCluster]:
    """A run of 1,000 steps, one a second, on rented machines."""
    made: list[RentingCluster] = []

    def cluster(clock: object) -> RentingCluster:
        made.append(RentingCluster(clock, 3))  # type: ignore[arg-type]
        return made[0]

    found = Scene(steps=1000, cluster=cluster)
    if deadline_s is not None:
        found.runs.write("limits.json", Limits(deadline=found.run.created + deadline_s))
    return found, made[0]


def lost(cluster: RentingCluster, *gone: str) -> Callable[[FakeTraining], None]:
    """Return a fault: the machines are taken away, once, and these kinds are not to be had any more."""
    met: list[bool] = []

    def fault(training: FakeTraining) -> None:
        if not met:
            met.append(True)
            cluster.none |= set(gone)
            cluster.take_away()

    return fault


def kinds(cluster: RentingCluster) -> list[str]:
    return [kind for _, kind in cluster.rented]


def test_lost_spot_machines_are_replaced_by_spot_ones_while_there_is_time() -> None:
    run, cluster = scene(10_000.0)
    run.training.faults[200] = lost(cluster)
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "spot"]
    assert not run.noted("on-demand")


def test_run_ahead_of_its_pace_waits_for_spot_machines_and_pays_nothing_meanwhile() -> None:
    run, cluster = scene(10_000.0)
    run.training.faults[300] = lost(cluster, "spot")
    run.at(1300.0, cluster.none.clear)
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "spot"]
    assert cluster.rented[1][0] >= 2300.0
    assert [n for n in run.notes if "no spot machines" in n] == [
        "no spot machines (no spot machines); the deadline leaves time to wait for them"
    ]
    spend = read_spend(run.runs)
    assert spend.cost is not None
    assert 1000 < spend.cost < 1200, "two nodes cost one a second"
    assert spend.changeover_s < 30, "what it waits is the policy's own choice"


def test_changeover_has_the_launch_in_it_but_no_refusal_and_no_back_off() -> None:
    run, cluster = scene(None)
    cluster.launch_s = 50.0
    run.training.faults[300] = lost(cluster, "spot")
    run.at(600.0, cluster.none.clear)
    assert run.supervise() == Outcome("finished", 0)
    assert cluster.rented[1][0] - cluster.rented[0][0] > 500
    assert 50 < read_spend(run.runs).changeover_s < 80


def test_time_that_a_run_waits_for_machines_is_not_idle() -> None:
    run, cluster = scene(10_000.0)
    run.runs.write("limits.json", Limits(deadline=run.run.created + 10_000.0, max_idle_hours=0.1))
    run.training.faults[300] = lost(cluster, "spot")
    run.at(1300.0, cluster.none.clear)
    assert run.supervise() == Outcome("finished", 0)
    assert cluster.rented[1][0] - cluster.rented[0][0] > 900
    spend = read_spend(run.runs)
    assert spend.node_s < 2 * 1200, "nor are nodes counted that are not held"


def test_machines_that_are_held_for_nothing_are_idle() -> None:
    run, _ = scene(10_000.0)
    run.runs.write("limits.json", Limits(deadline=run.run.created + 10_000.0, max_idle_hours=0.1))
    run.runs.write(KEY, changed(Supervision(), ["watchdog.floor_s=100000"]))
    run.training.faults[300] = lambda training: training.frozen.update({0, 1})
    outcome = run.supervise()
    assert outcome.message.startswith("--max-idle 0.1: no step for 0.10 h")


def test_run_that_would_miss_its_deadline_goes_on_with_on_demand_machines_at_their_price() -> None:
    run, cluster = scene(2200.0)
    run.training.faults[300] = lost(cluster, "spot")
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "on-demand"]
    assert run.noted("the machines are on-demand ones now")
    assert run.clock.time() < run.run.created + 2200.0
    waited = cluster.rented[1][0] - cluster.rented[0][0]
    assert waited > 310, "first it waited, as it was ahead"
    spend = read_spend(run.runs)
    assert spend.cost is not None
    assert 300 + 3 * 700 < spend.cost < 1.2 * (300 + 3 * 700)


def test_tight_deadline_takes_no_risk_although_spot_machines_are_there() -> None:
    run, cluster = scene(1050.0)
    run.training.faults[300] = lost(cluster)
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "on-demand"]


def test_without_a_deadline_the_settings_choose() -> None:
    run, cluster = scene(None)
    cluster.prefer("run", spot=False)
    run.training.faults[300] = lost(cluster)
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["on-demand", "on-demand"]
    spend = read_spend(run.runs)
    assert spend.cost is not None
    assert spend.cost > 3 * 1000, "counted by the kind that is held"


def test_money_is_counted_at_what_the_machines_were_taken_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "says-nothing-of-prices.toml"))
    run, cluster = scene(None)
    cluster.dollars["spot"] = 3 * 3600.0

    def dearer(training: FakeTraining) -> None:
        cluster.dollars["spot"] = 5 * 3600.0
        take(training)

    take = lost(cluster)
    run.training.faults[300] = dearer
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "spot"]
    spend, took = read_spend(run.runs), [cluster.rented[1][0] - cluster.rented[0][0], run.clock.now()]
    due = 2 * (3 * took[0] + 5 * (took[1] - cluster.rented[1][0]))
    assert spend.cost == pytest.approx(due, rel=0.02)


def test_money_of_machines_without_a_price_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "says-nothing-of-prices.toml"))
    run, cluster = scene(None)
    cluster.dollars["spot"] = 0.0
    assert run.supervise() == Outcome("finished", 0)
    assert read_spend(run.runs).cost is None


def test_run_that_begins_without_spot_machines_begins_on_demand() -> None:
    run, cluster = scene(10_000.0)
    cluster.none.add("spot")
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["on-demand"]


def test_what_was_done_before_counts_when_a_run_is_gone_on_with() -> None:
    run, cluster = scene(2200.0)
    run.at(310.0, lambda: run.runs.write("stop", {}))
    assert run.supervise().state == "stopped"
    assert run.training.committed >= 250
    cluster.give_back("run")
    run.clock.sleep(1160.0 - 310.0)  # all 1,000 steps would be a matter for on-demand machines now
    assert run.supervise() == Outcome("finished", 0)
    assert kinds(cluster) == ["spot", "spot"]

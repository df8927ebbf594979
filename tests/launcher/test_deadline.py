"""Uniform Progress: each rule, and the promise that a deadline is met whenever on-demand alone would meet it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.deadline import Capacity, Job, Moment, play, uniform_progress

NONE, SPOT, ON_DEMAND = Capacity.NONE, Capacity.SPOT, Capacity.ON_DEMAND
JOB = Job(work_s=1000.0, deadline_s=2000.0, changeover_s=50.0)


@pytest.mark.parametrize(
    ("moment", "wanted"),
    [
        pytest.param(Moment(900.0, 1000.0, SPOT, True), NONE, id="thrifty: done, so nothing is held"),
        pytest.param(Moment(400.0, 250.0, NONE, True), SPOT, id="ahead and idle: spot"),
        pytest.param(Moment(400.0, 100.0, NONE, True), SPOT, id="risk: behind, and still spot where it is there"),
        pytest.param(Moment(400.0, 100.0, SPOT, True), SPOT, id="exploitation: spot is kept"),
        pytest.param(Moment(400.0, 250.0, NONE, False), NONE, id="ahead without spot: wait"),
        pytest.param(Moment(400.0, 100.0, NONE, False), ON_DEMAND, id="behind without spot: on-demand"),
        pytest.param(Moment(400.0, 210.0, ON_DEMAND, True), ON_DEMAND, id="hysteresis: kept until 2d ahead"),
        pytest.param(Moment(400.0, 260.0, ON_DEMAND, True), SPOT, id="caught up: spot again"),
        pytest.param(Moment(400.0, 260.0, ON_DEMAND, False), NONE, id="caught up without spot: wait"),
        pytest.param(Moment(1301.0, 410.0, NONE, True), ON_DEMAND, id="safety net: no risk any more"),
        pytest.param(Moment(1300.0, 410.0, ON_DEMAND, True), ON_DEMAND, id="safety net: to the end"),
        pytest.param(Moment(1300.0, 410.0, SPOT, True), SPOT, id="on spot, the slack does not shrink"),
    ],
)
def test_rule(moment: Moment, wanted: Capacity) -> None:
    assert uniform_progress(JOB, moment, tick_s=10.0) is wanted


@given(
    work=st.floats(1.0, 5000.0),
    changeover=st.floats(0.0, 300.0),
    slack=st.floats(0.0, 3000.0),
    tick=st.floats(1.0, 200.0),
    spot=st.lists(st.booleans(), max_size=200),
)
def test_deadline_is_met_whenever_on_demand_alone_meets_it(
    work: float, changeover: float, slack: float, tick: float, spot: list[bool]
) -> None:
    job = Job(work, work + changeover + slack, changeover)
    found = play(job, spot, tick)
    assert found.done_s is not None
    assert found.done_s <= job.deadline_s + 1e-6


@given(st.lists(st.booleans(), max_size=100))
def test_on_demand_alone_takes_the_work_and_one_changeover(spot: list[bool]) -> None:
    found = play(JOB, spot, 10.0, only=ON_DEMAND)
    assert found.done_s == pytest.approx(1050.0)
    assert (found.spot_s, found.on_demand_s) == (0.0, pytest.approx(1050.0))


def test_where_spot_is_always_there_nothing_else_is_paid() -> None:
    found = play(JOB, [True] * 200, 10.0)
    assert (found.on_demand_s, found.done_s) == (0.0, pytest.approx(1050.0))
    assert found.cost(spot=1.0, on_demand=3.0) == pytest.approx(1050 / 3600)


def test_where_spot_comes_and_goes_it_is_cheaper_than_on_demand_and_surer_than_spot() -> None:
    spot = [tick % 60 < 15 for tick in range(200)]  # a quarter of the time
    job = JOB._replace(changeover_s=5.0)
    mixed, bought = play(job, spot, 10.0), play(job, spot, 10.0, only=ON_DEMAND)
    assert play(job, spot, 10.0, only=SPOT).done_s is None
    assert mixed.done_s is not None
    assert mixed.cost(1.0, 3.0) < bought.cost(1.0, 3.0)

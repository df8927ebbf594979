"""The model: conservation, bounds, and that it gets worse where it should."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.snapshot import interval
from launcher.rehearse.costs import Costs
from launcher.rehearse.model import Policy, best_interval, optimum, simulate
from launcher.rehearse.slots import Moves, places, short_of
from launcher.rehearse.traces import Trace, noticed, random_trace
from tests.launcher.rehearse.strategies import END_S, policies, run_costs, spot_traces

DAY_S = 86400.0
BEGIN = Moves(0.0, (), (0, 1, 2, 3))
COSTS = Costs(step={4: 1.0}, stall=1.0, latency=5.0, drag=0.1, copy=0.05, detect=2.0, restart=10.0, start=20.0)


@given(spot_traces(), run_costs, policies, st.integers(1, 6), st.integers(0, 5))
def test_no_second_is_counted_twice_or_forgotten(
    trace: Trace, costs: Costs, policy: Policy, most: int, fewer: int
) -> None:
    least, moves = max(1, most - fewer), places(trace, most)
    found = simulate(moves, trace.end_s, costs, policy, least)
    assert found.total_s == pytest.approx(trace.end_s)
    assert min(found) >= -1e-9
    assert 0 <= found.goodput <= 1
    assert found.waiting_s == pytest.approx(sum(b - a for a, b in short_of(moves, least, END_S)), abs=1e-6)


@given(spot_traces(), run_costs, policies, st.integers(1, 6))
def test_nobody_beats_the_optimum(trace: Trace, costs: Costs, policy: Policy, most: int) -> None:
    moves = places(trace, most)
    ours = simulate(moves, trace.end_s, costs, policy, most)
    stalls = sum(len(m.lost) > 0 for m in moves) * costs.stall  # which it pays where we may have had nothing to save
    assert ours.useful_s <= optimum(moves, trace.end_s, costs, most).useful_s + stalls + 1e-6


@given(st.floats(1.0, 500.0), st.floats(0.0, 0.5), st.floats(0.01, 1.0))
def test_without_failures_goodput_is_one_less_the_overhead(period: float, drag: float, stall: float) -> None:
    costs = Costs(step={4: 1.0}, stall=stall, latency=1.0, drag=drag, start=0.0)
    found = simulate([BEGIN], 1000.0, costs, Policy(interval_s=period, memory=False), 4)
    assert found.goodput == pytest.approx(max(0.0, 1 - (stall + drag) / period))
    assert (found.lost_s, found.restart_s, found.restarts) == (0, 0, 0)


def test_interval_is_the_one_that_a_run_would_choose() -> None:
    seen = interval.Costs(stall=1.0, latency=5.0, drag=0.1, slots=1)
    chosen = interval.interval_s(seen, interval.PRIOR_MTBF_S)
    moves = [BEGIN]
    by_run = simulate(moves, 500.0, COSTS, Policy(memory=False), 4)
    assert by_run == simulate(moves, 500.0, COSTS, Policy(interval_s=chosen, memory=False), 4)


def test_more_failures_leave_less() -> None:
    found = [
        simulate(places(random_trace(8, hours * 3600, 60.0, DAY_S), 8), DAY_S, COSTS, Policy(), 8).goodput
        for hours in (1, 4, 16, 64)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_loss_costs_the_steps_since_the_last_copy_detection_and_restart() -> None:
    lost = Moves(100.5, (1,), (1,))
    found = simulate([BEGIN, lost], 200.0, COSTS, Policy(interval_s=math.inf, memory_steps=10), 4)
    turn_s = 10 * 1.0 + 0.05
    trained_s = 100.5 - 20
    kept = math.floor((trained_s - 1) / turn_s) * turn_s
    assert found.lost_s == pytest.approx((trained_s - kept) / turn_s * 10)
    assert found.restart_s == pytest.approx(20 + 2 + 10)


def test_two_neighbours_at_once_take_the_memory_with_them() -> None:
    policy = Policy(interval_s=40.0, memory_steps=5)
    apart = simulate([BEGIN, Moves(100.0, (0, 2), (0, 2))], 150.0, COSTS, policy, 4)
    neighbours = simulate([BEGIN, Moves(100.0, (3, 0), (0, 3))], 150.0, COSTS, policy, 4)  # the last one's is the first
    assert apart.lost_s < 6
    assert neighbours.lost_s > 30  # back to the commit of 40 s after the start, at 60 of 80 s


def test_keeper_lost_during_the_restart_takes_the_memory_too() -> None:
    policy = Policy(interval_s=math.inf, memory_steps=5)
    moves = [BEGIN, Moves(100.0, (1,), (1,)), Moves(105.0, (2,), (2,))]
    found = simulate(moves, 150.0, COSTS, policy, 4)
    assert found.lost_s > 70  # all of it: nothing was ever in the store
    assert found.restart_s == pytest.approx(20 + 5 + 12)


def test_with_notice_nothing_is_lost() -> None:
    trace = random_trace(8, 1800.0, 60.0, DAY_S)
    moves = places(noticed(trace, 120.0), 8)
    found = simulate(moves, DAY_S, COSTS, Policy(noticed=True), 8)
    assert found.restarts > 100
    assert (found.lost_s, found.lost_steps) == (0, 0)


def test_join_costs_a_planned_run_a_pause_and_the_others_their_steps() -> None:
    moves = [Moves(0.0, (), (0, 1)), Moves(100.0, (), (2, 3))]
    planned = simulate(moves, 200.0, COSTS, Policy(interval_s=math.inf), 2)
    stock = simulate(moves, 200.0, COSTS, Policy(interval_s=math.inf, memory=False, planned_joins=False), 2)
    assert planned.lost_s == 0
    assert planned.restart_s == 20 + COSTS.join
    assert stock.lost_s == 80


def test_best_interval_is_no_worse_than_any_other() -> None:
    moves = places(random_trace(4, 3600.0, 60.0, DAY_S), 4)
    best_s, best = best_interval(moves, DAY_S, COSTS, Policy(memory=False), 4)
    for other in (best_s / 3, best_s * 3, 600.0):
        assert simulate(moves, DAY_S, COSTS, Policy(interval_s=other, memory=False), 4).steps <= best.steps


def test_thousand_nodes_over_weeks_is_a_matter_of_their_changes() -> None:
    """Six weeks are 3.6 million steps; what the model goes through are some 12,000 changes."""
    end_s = 42 * DAY_S
    trace = random_trace(1000, 7 * DAY_S, 600.0, end_s)
    found = simulate(places(trace, 1000), end_s, Costs(step={1000: 1.0}), Policy(), 900)
    assert 5000 < found.restarts < 14000
    assert 0.5 < found.goodput < 1

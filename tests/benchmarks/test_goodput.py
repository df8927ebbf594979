"""The goodput benchmark: what is compared with what, without measuring."""

from __future__ import annotations

import pytest

from benchmarks import goodput
from benchmarks.goodput import Scenario
from benchmarks.goodput_peer import Gap, Peer, gaps, summary
from launcher.rehearse.account import Stretch
from launcher.rehearse.costs import Costs
from launcher.rehearse.traces import random_trace

COSTS = Costs(step={2: 0.5}, stall=0.02, latency=1.0, copy=0.02, detect=0.0, restart=8.0, start=10.0, join=8.0)
DAY_S = 86400.0


@pytest.fixture(scope="module")
def accounts() -> list[tuple[str, goodput.Account]]:
    trace = random_trace(20, 4 * 3600.0, 600.0, DAY_S)
    return list(goodput.ways(Scenario(8, 8), trace, COSTS, Peer(2.0, 15.0), 600.0, 120.0))


def test_every_way_is_there_and_none_beats_the_optimum(accounts: list[tuple[str, goodput.Account]]) -> None:
    names = [name for name, _ in accounts]
    assert names[:2] == ["ours", "ours, 120 s notice"]
    assert [name[:3] for name in names[2:]] == ["our", "(a)", "(b)", "(c)"]
    assert all(a.goodput <= accounts[-1][1].goodput for _, a in accounts)


def test_snapshots_notices_and_hindsight_help(accounts: list[tuple[str, goodput.Account]]) -> None:
    ours, noticed, best, fixed, hindsight, _ = (a for _, a in accounts)
    assert noticed.lost_s == 0 < ours.lost_s
    assert hindsight.steps > fixed.steps
    assert best.steps >= ours.steps * 0.999
    assert ours.goodput > fixed.goodput


def test_ratios_are_to_the_optimum_and_the_bar_is_held_against_the_worst(
    accounts: list[tuple[str, goodput.Account]],
) -> None:
    table = list(goodput.rows(Scenario(8, 8), accounts))
    assert table[-1][1:4] == ["1.000", "1.000", "1.000"]
    ours = accounts[0][1].goodput / accounts[-1][1].goodput
    assert goodput.verdict([accounts, accounts])[0] == pytest.approx(ours)
    bad = [(n, a._replace(useful_s=a.useful_s / 2, lost_s=a.lost_s + a.useful_s / 2)) for n, a in accounts[:-1]]
    ratio, sentence = goodput.verdict([accounts, [*bad, accounts[-1]]])
    assert ratio == pytest.approx(ours / 2)
    assert "missed" in sentence


def test_every_scenario_says_where_its_time_goes(accounts: list[tuple[str, goodput.Account]]) -> None:
    ours = accounts[0][1]._replace(useful_s=900.0, lost_s=10.0, restart_s=60.0, overhead_s=30.0)
    text = goodput.limits(Scenario(8, 32), [("ours", ours), ("(c)", ours._replace(useful_s=1e9))])
    assert text == "8:32 nodes: 0.900 of (c), missed; restarts 6.0%, snapshots and copies 3.0%, steps taken again 1.0%"


def test_peer_is_taken_at_its_best_and_what_it_needed_is_told() -> None:
    peer = summary([0.3, 0.1, 0.2], [Gap(12.0, 0.0), Gap(75.0, 60.0), Gap(74.0, 60.0)])
    assert peer == Peer(save_s=0.2, restart_s=14.0, waited_s=74.0, kills=3, jobs=2)
    assert "started again after 2 of 3 kills, for no step in 60 s: 74.0 s with that" in goodput.spell_peer(peer, 60.0)
    assert goodput.spell_peer(peer._replace(jobs=0), 60.0).endswith(
        "(the whole job had to be started again after 0 of 3 kills)"
    )


def test_run_that_goes_back_shows_an_interruption() -> None:
    taken = [{"step": s, "time": t} for s, t in [(9, 1.0), (10, 2.0), (11, 3.0), (11, 15.0), (12, 16.0)]]
    assert gaps(taken) == [12.0]


def test_step_is_the_same_for_all(accounts: list[tuple[str, goodput.Account]]) -> None:
    assert {round(a.useful_s / a.steps, 6) for _, a in accounts} == {0.5}


def test_run_that_may_shrink_does_not_wait_for_the_next_node() -> None:
    attempts = [
        Stretch(0, 10, 0, 10, 2),
        Stretch(13, 20, 10, 17, 1),
        Stretch(21, 30, 17, 26, 2),
        Stretch(35, 40, 26, 30, 1),
    ]
    elastic = goodput.with_joins(COSTS, attempts)
    assert (elastic.restart, elastic.join) == (4.0, 1.0)
    assert goodput.with_joins(COSTS, attempts[:1]) == COSTS
    assert goodput.costs_in(Scenario(8, 8), COSTS, elastic) == COSTS
    assert goodput.costs_in(Scenario(8, 32), COSTS, elastic) == elastic

"""The goodput benchmark: what is compared with what, without measuring."""

from __future__ import annotations

import pytest

from benchmarks import goodput
from benchmarks.goodput import Peer, Scenario
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
    ours = accounts[1][1].goodput / accounts[-1][1].goodput
    assert goodput.verdict([accounts, accounts])[0] == pytest.approx(ours)
    bad = [(n, a._replace(useful_s=a.useful_s / 2, lost_s=a.lost_s + a.useful_s / 2)) for n, a in accounts[:-1]]
    ratio, sentence = goodput.verdict([accounts, [*bad, accounts[-1]]])
    assert ratio == pytest.approx(ours / 2)
    assert "missed" in sentence


def test_step_is_the_same_for_all(accounts: list[tuple[str, goodput.Account]]) -> None:
    assert {round(a.useful_s / a.steps, 6) for _, a in accounts} == {0.5}

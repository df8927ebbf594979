"""What a run may cost: reading it, counting, and when it ends the run. Prices from clusters.toml."""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import Offer
from cluster.local import LocalCluster
from fgtrain.errors import UserError
from fgtrain.lease import read_limits, read_spend
from fgtrain.limits import Limits, Spend, exceeded
from fgtrain.runstore import RunStore
from fgtrain.stores.memory import MemoryStore
from launcher import clusters, limits, money
from launcher.limits import Meter, parse_deadline, set_limits
from launcher.money import Prices, Terms

HOUR = 3600.0
_names = count()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def runs() -> RunStore:
    return RunStore(MemoryStore(f"limits-{next(_names)}"), "r")


def metered(runs: RunStore, clock: Clock, told: list[str], prices: Prices | None = None, steps: int = 1000) -> Meter:
    return Meter(runs, prices, steps, told.append, clock)


def asked(**given: object) -> Limits:
    options = {"max_cost": None, "max_hours": None, "max_idle": None, "deadline": None}
    return limits.asked(argparse.Namespace(**{**options, **given}))


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 12 * HOUR), ("1.5d", 36 * HOUR), ("30s", 30)])
def test_deadline_as_a_duration(text: str, seconds: float) -> None:
    assert parse_deadline(text, 1000.0) == 1000 + seconds


def test_deadline_as_a_time() -> None:
    assert parse_deadline("2026-11-22T08:00+00:00", 0.0) == 1795334400


@pytest.mark.parametrize("text", ["tomorrow", "12", "-3h", "12 parsecs", "2001-01-01", ""])
def test_bad_deadline_is_named(text: str) -> None:
    with pytest.raises(UserError, match="--deadline"):
        parse_deadline(text, 2e9)


@pytest.mark.parametrize("option", ["max_cost", "max_hours", "max_idle"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_limit_is_named(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}"):
        asked(**{option: value})


def test_money_is_not_limited_where_no_price_is_known() -> None:
    limits.check_priced(asked(max_cost=3.0), Prices(1.0, 1.0))
    with pytest.raises(UserError, match="price_per_node_hour"):
        limits.check_priced(asked(max_cost=3.0), None)


def test_hours_are_counted_over_several_supervisors(runs: RunStore) -> None:
    set_limits(runs, asked(max_hours=2.0))
    clock, told = Clock(), list[str]()
    first = metered(runs, clock, told)
    clock.now += 1.5 * HOUR
    assert first.tick(2, 10) is None
    clock.now += 100 * HOUR  # nobody supervises
    second = metered(runs, clock, told)
    assert second.tick(2, 10) is None
    clock.now += 0.6 * HOUR
    assert second.tick(2, 11) == "--max-hours 2 is reached after 2.10 h"
    assert read_spend(runs).node_s == pytest.approx(2 * 2.1 * HOUR)


def test_run_beyond_its_limit_is_not_resumed_until_it_is_raised(runs: RunStore) -> None:
    set_limits(runs, asked(max_hours=2.0, max_cost=50.0))
    runs.write("spend.json", Spend(seconds=2.5 * HOUR))
    with pytest.raises(UserError, match="--max-hours 2 is reached"):
        set_limits(runs, asked())
    set_limits(runs, asked(max_hours=4.0))
    assert read_limits(runs) == Limits(max_hours=4.0, max_cost=50.0)


def test_cost_ends_a_run(runs: RunStore) -> None:
    set_limits(runs, asked(max_cost=10.0))
    clock, told = Clock(), list[str]()
    meter = metered(runs, clock, told, Prices(spot=3.0, on_demand=9.0))
    clock.now += HOUR
    assert meter.tick(3, 1) is None
    assert read_spend(runs).cost == pytest.approx(9.0)
    clock.now += HOUR / 5
    assert meter.tick(3, 2) == "--max-cost 10 is reached: 10.80 so far"


def test_idle_run_ends_and_a_step_is_all_it_takes_to_go_on(runs: RunStore) -> None:
    set_limits(runs, asked(max_idle=1.0))
    clock, told = Clock(), list[str]()
    meter = metered(runs, clock, told)
    for step in (1, 2, 3):
        clock.now += 0.9 * HOUR
        assert meter.tick(1, step) is None
    clock.now += 0.9 * HOUR
    assert meter.tick(1, 3) is None
    clock.now += 0.2 * HOUR
    reason = meter.tick(1, 3)
    assert reason is not None
    assert "no step for 1.10 h" in reason
    assert metered(runs, clock, told).tick(1, 3) is None  # resumed: it has its time anew


def test_run_that_is_gone_on_with_has_not_fallen_back_and_takes_no_step_by_that(runs: RunStore) -> None:
    set_limits(runs, asked(max_idle=1.0))
    runs.write("spend.json", Spend(step=300))
    clock, told = Clock(), list[str]()
    meter = metered(runs, clock, told)
    clock.now += 0.6 * HOUR
    assert meter.tick(1, 0) is None
    clock.now += 0.6 * HOUR
    reason = meter.tick(1, 290)
    assert reason is not None
    assert "no step for 1.20 h" in reason
    assert read_spend(runs).step == 300


def test_run_that_is_told_to_go_back_is_counted_from_there(runs: RunStore) -> None:
    runs.write("spend.json", Spend(step=300, cost=7.0))
    limits.go_back(runs, 400)
    assert read_spend(runs).step == 300
    limits.go_back(runs, 120)
    assert read_spend(runs) == Spend(step=120, cost=7.0)


def test_time_until_a_run_that_is_gone_on_with_trains_again_is_no_pace(runs: RunStore) -> None:
    clock, told = Clock(), list[str]()
    runs.write("limits.json", Limits(deadline=clock.now + 2 * HOUR))
    meter = metered(runs, clock, told, steps=1000)
    for step in (500, 500, 501, 560, 620):  # half an hour until the first step, and then one a second
        assert meter.tick(1, step) is None
        clock.now += 0.5 * HOUR if step == 500 else 60
    assert told == []


def test_deadline_that_will_be_missed_is_told_once_and_ends_nothing(runs: RunStore) -> None:
    clock, told = Clock(), list[str]()
    runs.write("limits.json", Limits(deadline=clock.now + HOUR))
    meter = metered(runs, clock, told, steps=1000)
    for step in range(0, 40, 10):  # ten steps a minute: 1,000 take 100 minutes
        assert meter.tick(1, step) is None
        clock.now += 60
    assert len(told) == 1
    assert "missed by 0." in told[0]
    clock.now += HOUR
    assert meter.tick(1, 100) is None
    assert meter.tick(1, 101) is None
    assert told[1:] == ["the deadline has passed at step 100 of 1000; the run goes on"]


def test_deadline_that_is_met_is_not_spoken_of(runs: RunStore) -> None:
    clock, told = Clock(), list[str]()
    runs.write("limits.json", Limits(deadline=clock.now + 2 * HOUR))
    meter = metered(runs, clock, told, steps=1000)
    for step in range(0, 1001, 10):
        meter.tick(1, step)
        clock.now += 60
    assert told == []


amounts = st.floats(0.0, 1e6)


@given(st.lists(st.tuples(amounts, st.integers(0, 100), st.integers(0, 5)), max_size=20), st.floats(0.0, 10.0))
def test_spend_only_grows_and_never_more_than_by_the_price(ticks: list[tuple[float, int, int]], price: float) -> None:
    spend = Spend()
    for seconds, nodes, step in ticks:
        after = spend.later(seconds, nodes, price / HOUR, step)
        assert after.seconds >= spend.seconds
        assert (after.cost or 0.0) == pytest.approx((spend.cost or 0.0) + seconds * nodes * price / HOUR)
        assert 0 <= after.since <= after.seconds
        assert after.step == max(spend.step, step)
        spend = after


@given(st.lists(st.tuples(amounts, st.integers(0, 2), st.integers(0, 5)), max_size=20))
def test_idle_time_is_what_nodes_were_held_for_since_the_last_step(ticks: list[tuple[float, int, int]]) -> None:
    spend, idle_s = Spend(), 0.0
    for seconds, nodes, step in ticks:
        idle_s = 0.0 if step > spend.step else idle_s + seconds if nodes else idle_s
        spend = spend.later(seconds, nodes, None, step)
        assert spend.seconds - spend.since == pytest.approx(idle_s, abs=1e-6)


def test_no_limit_is_never_exceeded() -> None:
    assert exceeded(Limits(), Spend(seconds=1e9, cost=1e9)) is None
    assert exceeded(Limits(max_cost=1.0), Spend(seconds=1e9)) is None  # no price, no cost


# -- clusters.toml --------------------------------------------------------------------------------------------------


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = folder / "clusters.toml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(file))


def test_prices_and_lease_are_terms_of_any_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path, monkeypatch, '[local]\nkind = "local"\nprice_per_node_hour = 2.5\nlease_s = 120\n')
    assert clusters.terms_of("local") == Terms(Prices(2.5, 2.5), 120)
    assert clusters.terms_of("other") == Terms(None, None)
    found = clusters.find_cluster("local", tmp_path)  # the backend does not see them
    assert clusters.prices_on("local", found) == Prices(2.5, 2.5)
    assert clusters.lease_on("local", found, "memory://", "r", 1) == {}  # its nodes end with the supervisor


def test_spot_and_on_demand_have_prices_of_their_own() -> None:
    both = money.read_terms({"price_per_node_hour": {"spot": 0.9, "on_demand": 3}}, "x")
    assert both.prices == Prices(0.9, 3.0)
    assert money.read_terms({"price_per_node_hour": {"spot": 0.9}}, "x").prices == Prices(0.9, 0.9)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ({"price_per_node_hour": "cheap"}, "price_per_node_hour is 'cheap'"),
        ({"price_per_node_hour": -1}, "price_per_node_hour is -1"),
        ({"price_per_node_hour": {"spt": 1}}, "price_per_node_hour: an amount"),
        ({"price_per_node_hour": {"spot": True}}, "price_per_node_hour.spot is True"),
        ({"lease_s": 5}, "lease_s is 5"),
        ({"lease_s": "1h"}, "lease_s is '1h'"),
    ],
)
def test_bad_terms_are_named(entry: dict[str, object], wrong: str) -> None:
    with pytest.raises(UserError) as refused:
        money.read_terms(entry, "clusters.toml: [lab]")
    assert str(refused.value).startswith(f"clusters.toml: [lab]: {wrong}")


class KnowsItsPrices:
    def prices(self) -> Prices | None:
        return Prices(1.0, 4.0)


def test_users_word_on_prices_wins_over_the_backends(tmp_path: Path) -> None:
    mine = Terms(Prices(2.0, 2.0), None)
    assert money.prices_of(mine, KnowsItsPrices()) == Prices(2.0, 2.0)
    assert money.prices_of(Terms(None, None), KnowsItsPrices()) == Prices(1.0, 4.0)
    assert money.prices_of(Terms(None, None), LocalCluster(tmp_path, tmp_path)) is None


def test_rented_nodes_cost_what_they_were_taken_for_unless_the_user_says() -> None:
    spot, on_demand = (Offer("here", "machine", 4, kind, 12.0) for kind in (True, False))
    unsaid, said = Terms(None, None), Terms(Prices(1.0, 2.0), None)
    assert money.rate_of(unsaid, spot) == 3.0
    assert [money.rate_of(said, offer) for offer in (spot, on_demand)] == [1.0, 2.0]
    assert money.rate_of(unsaid, spot._replace(dollars_per_hour=0.0)) is None
    assert money.rate_of(Terms(Prices(0.0, 0.0), None), spot) == 0.0


def test_lasting_clusters_have_a_lease_by_default() -> None:
    assert money.lease_of(Terms(None, None), lasting=True) == 900
    assert money.lease_of(Terms(None, 60), lasting=True) == 60
    assert money.lease_of(Terms(None, 60), lasting=False) is None


def test_cost_is_spelled_with_what_a_thousand_steps_came_to() -> None:
    assert money.spell_cost(None, 5) == ""
    assert money.spell_cost(3.0, 0) == "3.00"
    assert money.spell_cost(3.0, 1500) == "3.00 (2/1k steps)"


def test_spend_is_read_back_as_written(runs: RunStore) -> None:
    spend = Spend(seconds=1.0, node_s=2.0, cost=3.0, per_s=0.1, step=4, since=0.5)
    runs.write("spend.json", spend)
    assert read_spend(runs) == spend
    assert msgspec.structs.asdict(read_limits(runs)) == dict.fromkeys(Limits.__struct_fields__)

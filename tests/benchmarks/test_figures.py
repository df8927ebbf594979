"""The benchmarks' arithmetic and tables."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import pins
from benchmarks.spread import median_interval, ratios, spread
from benchmarks.table import conditions, render
from benchmarks.turns import turn_order

times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def test_spread_is_the_median_between_the_quartiles() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratios_are_taken_pair_by_pair() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios([1.0], [])


@given(times)
def test_interval_of_the_median_holds_it_and_stays_within_the_values(values: list[float]) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= spread(values).median <= high <= max(values)


def test_interval_of_the_median_is_the_one_in_the_books() -> None:
    assert median_interval(list(range(1, 11))) == (2, 9)  # n = 10: 2nd and 9th, 97.9 %
    assert median_interval(list(range(1, 22))) == (6, 16)  # n = 21: 6th and 16th, 97.3 %
    assert median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0)


def test_interval_of_the_median_is_wrong_no_more_often_than_it_says() -> None:
    draw = random.Random(0)
    intervals = [median_interval([draw.expovariate(1.0) for _ in range(15)]) for _ in range(2000)]
    assert sum(low <= 0.6931 <= high for low, high in intervals) >= 0.95 * len(intervals)


def test_table_is_aligned_markdown() -> None:
    assert render(["loop", "s"], [["ours", "1.5"], ["theirs", "12.25"]]).splitlines() == [
        "| loop   |     s |",
        "| ------ | ----: |",
        "| ours   |   1.5 |",
        "| theirs | 12.25 |",
    ]


def test_conditions_name_versions_and_cores() -> None:
    text = conditions(("numpy",))
    assert text.startswith("Python 3.")
    assert ", numpy " in text
    assert " cores" in text


def test_no_loop_always_follows_the_same_one() -> None:
    names = ["a", "b", "c"]
    orders = [turn_order(names, r) for r in range(6)]
    assert all(sorted(o) == names for o in orders)
    assert {o[0] for o in orders} == set(names)
    pairs = [(o[i], o[i + 1]) for o in orders for i in range(2)]
    assert all(pairs.count((x, y)) == 2 for x in names for y in names if x != y)


def test_pins_are_this_environments_versions_without_builds_and_without_this_project() -> None:
    assert pins([("torch", "2.13.0+cpu"), ("fglaunch", "0.1"), ("numpy", "2.4")]) == "numpy==2.4\ntorch==2.13.0\n"

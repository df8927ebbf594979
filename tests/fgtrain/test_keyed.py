"""Keyed draws: bijections, epochs exactly once, any position at the same cost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.keyed import Order, Permutation, key

keys = st.integers(0, 2**64 - 1)


@given(st.integers(1, 600), keys)
def test_permutation_is_a_bijection(n: int, key_: int) -> None:
    permutation = Permutation(n, key_)
    assert len(permutation) == n
    assert sorted(permutation[i] for i in range(n)) == list(range(n))


@given(st.integers(1, 2**50), keys, st.data())
def test_elements_of_a_huge_permutation_are_in_range_and_differ(n: int, key_: int, data: st.DataObject) -> None:
    permutation = Permutation(n, key_)
    places = data.draw(st.sets(st.integers(0, n - 1), max_size=20))
    sent = {permutation[i] for i in places}
    assert len(sent) == len(places)
    assert all(0 <= s < n for s in sent)


@pytest.mark.parametrize("place", [-1, 5, 6])
def test_place_outside_is_an_index_error(place: int) -> None:
    with pytest.raises(IndexError):
        Permutation(5, 0)[place]


@given(st.integers(1, 200), st.integers(-5, 5), st.integers(0, 10**9))
def test_each_epoch_is_every_sample_once(samples: int, seed: int, epoch: int) -> None:
    order = Order(samples, seed)
    drawn = [order[epoch * samples + i] for i in range(samples)]
    assert {e for e, _ in drawn} == {epoch}
    assert sorted(s for _, s in drawn) == list(range(samples))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, other = Order(1000, 0), Order(1000, 1)
    orders = [tuple(o[e * 1000 + i][1] for i in range(1000)) for o in (first, other) for e in (0, 1)]
    assert len(set(orders)) == 4


def test_order_does_not_depend_on_what_was_asked_before() -> None:
    jumping = Order(100, 3)
    places = [250, 3, 199, 200, 0, 250]
    assert [jumping[p] for p in places] == [Order(100, 3)[p] for p in places]


def test_any_position_costs_the_same() -> None:
    def cost(position: int) -> float:
        begun = time.process_time()
        for i in range(200):
            Order(10**6, 0)[position + i]
        return time.process_time() - begun

    near, far = min(cost(0) for _ in range(5)), min(cost(10**15) for _ in range(5))
    assert far < 10 * near


def test_first_places_go_everywhere() -> None:
    """A keyed shuffle that leaves neighbours together would bias the first batches of each epoch."""
    permutation = Permutation(10_000, key("test"))
    deciles = [permutation[i] // 1000 for i in range(1000)]
    assert all(50 < deciles.count(d) < 160 for d in range(10))


@given(st.lists(st.integers(0, 99) | st.text("ab", max_size=3), max_size=3))
def test_key_has_64_bits_and_tells_its_parts_apart(parts: list[int | str]) -> None:
    assert 0 <= key("x", *parts) < 2**64
    assert key("x", *parts) == key("x", *parts)
    assert key("x", *parts) != key("y", *parts)
    assert key("x", *parts) != key("x", *parts, "more")


def test_key_does_not_run_parts_together() -> None:
    assert key("x", 1, 23) != key("x", 12, 3)

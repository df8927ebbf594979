"""Who fills which place of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.rehearse.slots import Moves, held_s, places, short_of
from launcher.rehearse.traces import Change, Trace, availability, counts
from tests.launcher.rehearse.strategies import END_S, spot_traces


def changes(*words: str) -> Trace:
    found = [w.split() for w in words]
    return Trace(tuple(Change(float(at), node, what == "+") for at, what, node in found), END_S)


def test_spare_takes_over_at_the_instant_of_the_loss() -> None:
    trace = changes("0 + a", "0 + b", "0 + c", "10 - a")
    assert places(trace, 2) == [Moves(0.0, (), (0, 1)), Moves(10.0, (0,), (0,))]


def test_place_stays_empty_until_a_node_comes() -> None:
    trace = changes("0 + a", "0 + b", "10 - b", "20 + c")
    assert places(trace, 2)[1:] == [Moves(10.0, (1,), ()), Moves(20.0, (), (1,))]


def test_loss_of_a_spare_is_no_matter_and_it_never_steps_in() -> None:
    trace = changes("0 + a", "0 + b", "10 - b", "20 - a", "30 + c")
    assert places(trace, 1) == [Moves(0.0, (), (0,)), Moves(20.0, (0,), ()), Moves(30.0, (), (0,))]


@given(spot_traces(), st.integers(1, 6))
def test_as_many_places_are_filled_as_there_are_nodes(trace: Trace, count: int) -> None:
    moves = places(trace, count)
    filled: set[int] = set()
    for move in moves:
        assert set(move.lost) <= filled
        filled -= set(move.lost)
        assert not set(move.filled) & filled
        filled |= set(move.filled)
    assert held_s(moves, END_S) == pytest.approx(sum(s * min(n, count) for s, n in counts(trace)))
    short = sum(b - a for a, b in short_of(moves, count, END_S))
    assert short == pytest.approx(END_S * (1 - availability(trace, count)), abs=1e-6)

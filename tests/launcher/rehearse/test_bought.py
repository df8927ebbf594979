"""When spot nodes can be had, tick by tick."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.rehearse.bought import spot_ticks
from launcher.rehearse.traces import Change, Trace, availability
from tests.launcher.rehearse.strategies import spot_traces


def test_tick_with_too_few_nodes_at_any_time_in_it_has_no_spot() -> None:
    changes = (Change(0.0, "a", True), Change(15.0, "b", True), Change(29.0, "a", False), Change(41.0, "c", True))
    assert spot_ticks(Trace(changes, 65.0), 2, 10.0) == [False, False, False, False, False, True]
    assert spot_ticks(Trace(changes, 65.0), 1, 10.0) == [True] * 6


@given(spot_traces(), st.integers(1, 6), st.sampled_from([1.0, 7.0, 50.0]))
def test_no_more_spot_than_the_trace_has(trace: Trace, nodes: int, tick_s: float) -> None:
    ticks = spot_ticks(trace, nodes, tick_s)
    assert sum(ticks) * tick_s <= availability(trace, nodes) * trace.end_s + 1e-6
    if tick_s == 1.0:
        assert sum(ticks) == round(availability(trace, nodes) * trace.end_s)

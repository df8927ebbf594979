"""Traces and costs for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from launcher.rehearse.costs import Costs
from launcher.rehearse.model import Policy
from launcher.rehearse.traces import Change, Trace

END_S = 1000.0


@st.composite
def spot_traces(draw: st.DrawFn) -> Trace:
    """Up to six nodes that come and go at whole seconds."""
    changes = []
    for node in range(draw(st.integers(1, 6))):
        times = sorted(draw(st.sets(st.integers(0, int(END_S) - 1), min_size=1, max_size=8)))
        changes += [Change(float(at), f"node{node}", i % 2 == 0) for i, at in enumerate(times)]
    return Trace(tuple(sorted(changes, key=lambda c: c.at_s)), END_S)


seconds = st.floats(0.01, 100.0)
run_costs = st.builds(
    Costs,
    step=st.dictionaries(st.integers(1, 8), st.floats(0.01, 20.0), min_size=1, max_size=3),
    stall=seconds,
    latency=seconds,
    drag=st.floats(0.0, 1.0),
    copy=seconds,
    detect=seconds,
    restart=seconds,
    start=seconds,
    join=seconds,
)
policies = st.builds(
    Policy,
    interval_s=st.none() | st.floats(0.5, 2000.0),
    memory=st.booleans(),
    memory_steps=st.none() | st.integers(0, 50),
    planned_joins=st.booleans(),
    noticed=st.booleans(),
)

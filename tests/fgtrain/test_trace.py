"""Where a step went, from made-up traces."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fgtrain.trace import length, overlap, spell, summarise, union

intervals = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 9)).map(lambda t: (float(t[0]), float(t[0] + t[1]))), max_size=9
)


def event(name: str, ts: float, dur: float, cat: str = "user_annotation") -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat}


def step(at: float) -> list[dict[str, Any]]:
    """100 us: 20 data, 10 forward, 40 backward of which the last 15 wait, 5 optimizer, 3 snapshot."""
    return [
        event("fglaunch.step", at, 100),
        event("fglaunch.data", at, 20),
        event("fglaunch.forward", at + 20, 10),
        event("fglaunch.backward", at + 30, 40),
        event("aten::mm", at + 30, 25, "cpu_op"),
        event("gloo:all_reduce", at + 50, 20, "cpu_op"),
        event("fglaunch.communication", at + 70, 2),
        event("fglaunch.snapshot", at + 72, 3),
        event("fglaunch.optimizer", at + 75, 5),
        event("aten::_fused_adamw_", at + 75, 5, "cpu_op"),
    ]


def test_waiting_for_others_is_taken_out_of_the_backward_pass() -> None:
    found = summarise([*step(0), *step(100), event("fglaunch.data", 900, 50), {"ph": "M", "name": "process_name"}])
    assert (found.steps, found.total, found.hidden, found.busy) == (2, 200, 10, None)
    expected = {"data": 40, "forward": 20, "backward": 50, "communication": 34, "optimizer": 10, "snapshot": 6}
    assert found.spans == expected
    text = spell(found)
    assert text.startswith("2 steps of 0.1 ms:")
    assert "20.0%" in text and "other" in text


def test_a_device_is_summed_up_by_its_own_events() -> None:
    kernels = [event("sgemm", 10, 50, "kernel"), event("ncclDevKernel_AllReduce_Sum_f32", 50, 30, "kernel")]
    found = summarise([*step(0)[:4], *kernels])
    assert found.hidden == 10
    assert found.spans["communication"] == 20
    assert found.spans["backward"] == 40, "the host does not wait for the device"
    assert found.busy == 70
    assert "busy 70.0%" in spell(found)


def test_a_trace_without_whole_steps_has_nothing_to_say() -> None:
    assert summarise([]).total == 0
    assert "0 steps" in spell(summarise([]))


@given(intervals, intervals)
def test_overlap_is_what_both_cover(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    covered = [{x for lo, hi in some for x in range(int(lo), int(hi))} for some in (a, b)]
    assert math.isclose(length(union(a)), len(covered[0]))
    assert math.isclose(length(overlap(union(a), union(b))), len(covered[0] & covered[1]))

"""Where a step went, from made-up traces."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.trace import SPANS, Device, length, less, overlap, spell, summarise, union

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
    assert (found.steps, found.total, found.hidden, found.device) == (2, 200, 10, None)
    expected = {"data": 40, "forward": 20, "backward": 50, "communication": 34, "optimizer": 10, "snapshot": 6}
    assert found.spans == expected
    text = spell(found)
    assert text.startswith("2 steps of 0.1 ms:")
    assert "20.0%" in text and "other" in text


def on_device(at: float) -> list[dict[str, Any]]:
    """A device's part of a step, in us: it copies 10, 5 of them behind kernels, computes 50, exchanges 30, 10 of them
    behind kernels, copies 5 behind the exchange, and rests.
    """
    return [
        event("Memcpy HtoD (Pinned -> Device)", at + 5, 10, "gpu_memcpy"),
        event("sgemm", at + 10, 30, "kernel"),
        event("relu", at + 30, 30, "kernel"),
        event("ncclDevKernel_AllReduce_Sum_f32", at + 50, 30, "kernel"),
        event("Memcpy DtoH (Device -> Pinned)", at + 70, 5, "gpu_memcpy"),
        event("fglaunch.backward", at + 30, 50, "gpu_user_annotation"),
        event("nccl:all_reduce", at + 50, 30, "gpu_user_annotation"),
        event("nccl:all_reduce", at + 40, 25, "user_annotation"),  # the host queues it
    ]


def test_a_devices_time_is_told_apart_from_the_hosts() -> None:
    late = event("sgemm", 205, 90, "kernel")  # after the steps
    found = summarise([*step(0), *on_device(0), *step(100), *on_device(100), late])
    assert found.spans == {
        "data": 40,
        "forward": 20,
        "backward": 80,  # the host does not wait for the device
        "communication": 4,  # ... but for the other hosts
        "optimizer": 10,
        "snapshot": 6,
    }
    assert found.device == Device(compute=100, copies=10, communication=40, idle=50)
    assert found.hidden == 20


def test_each_block_of_a_devices_profile_adds_up_to_the_step() -> None:
    text = spell(summarise([*step(0), *on_device(0)]))
    head, host, device = re.split(r"^  the device's time:$|(?<=host's time:)$", text, flags=re.M)
    assert head == "1 steps of 0.1 ms, the host's time:"
    for block, names in ((host, [*SPANS, "other"]), (device, ["compute", "copies", "communication", "idle"])):
        assert re.findall(r"^  (\w+) .*%$", block, flags=re.M) == names
        assert sum(float(share) for share in re.findall(r"([\d.]+)%", block)) == pytest.approx(100)
    assert "communication behind computation" in device


def test_a_device_that_only_exchanges_is_one() -> None:
    found = summarise([event("fglaunch.step", 0, 100), event("ncclKernel_AllGather", 90, 30, "kernel")])
    assert (found.device, found.hidden) == (Device(0, 0, 10, 90), 0)
    assert found.spans["communication"] == 0


def test_a_trace_without_whole_steps_has_nothing_to_say() -> None:
    assert summarise([]).total == 0
    assert "0 steps" in spell(summarise([]))


@given(intervals, intervals)
def test_overlap_is_what_both_cover(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    covered = [{x for lo, hi in some for x in range(int(lo), int(hi))} for some in (a, b)]
    assert math.isclose(length(union(a)), len(covered[0]))
    assert math.isclose(length(overlap(union(a), union(b))), len(covered[0] & covered[1]))
    assert math.isclose(length(less(union(a), union(b))), len(covered[0] - covered[1]))


@given(intervals, intervals, intervals)
def test_all_of_a_devices_time_is_told_once(
    a: list[tuple[float, float]], b: list[tuple[float, float]], c: list[tuple[float, float]]
) -> None:
    kinds = (("sgemm", "kernel", a), ("ncclKernel", "kernel", b), ("Memcpy", "gpu_memcpy", c))
    events = [event(name, start, end - start, cat) for name, cat, some in kinds for start, end in some]
    found = summarise([event("fglaunch.step", 5, 30), event("fglaunch.step", 35, 10), *events])
    assert found.device is None if not events else math.isclose(sum(found.device or ()), found.total)

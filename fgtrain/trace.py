"""What a profiler's trace says of where the time of a step went. Pure.

A trace is a list of events in Chrome's form: name `name`, category `cat`, start `ts` and length `dur` in microseconds.
Source: the trace event format of Chromium; categories as Kineto writes them (libkineto, ActivityType.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SPANS = ("data", "forward", "backward", "communication", "optimizer", "snapshot")
PREFIX = "fglaunch."
STEP = PREFIX + "step"

_COLLECTIVE = re.compile(r"^(gloo|nccl):|ncclDevKernel|ncclKernel")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

Interval = tuple[float, float]
Event = Mapping[str, Any]


class Summary(NamedTuple):
    """Microseconds: of all steps together, of each span on the host, and of the device where there is one.

    `communication` has what is left of collectives when nothing computes meanwhile; backward is without that.
    """

    steps: int
    total: float
    spans: dict[str, float]
    hidden: float  # of collectives, behind computation
    busy: float | None  # of the device


def summarise(events: Iterable[Event]) -> Summary:
    """Add up a trace; spans are the annotations of our own, in the steps that are whole."""
    known = [e for e in events if e.get("ph") == "X"]
    steps = _named(known, STEP)
    inside = union(steps)
    spans = {name: length(overlap(union(_named(known, PREFIX + name)), inside)) for name in SPANS}
    collectives = overlap(union([_interval(e) for e in known if _COLLECTIVE.search(e["name"])]), inside)
    kernels = [e for e in known if e.get("cat") in _DEVICE and not _COLLECTIVE.search(e["name"])]
    working = kernels or [e for e in known if e.get("cat") == "cpu_op" and not _waits(e["name"])]
    computing = union(map(_interval, working))
    hidden = length(overlap(collectives, computing))
    exposed = length(collectives) - hidden
    backward = union(_named(known, PREFIX + "backward"))
    in_backward = length(overlap(collectives, backward)) - length(overlap(overlap(collectives, backward), computing))
    if not kernels:  # the host waits in the backward pass; a device is waited for by nobody
        spans["backward"] -= in_backward
    spans["communication"] = exposed + (0.0 if kernels else _rest(known, collectives, inside))
    busy = length(overlap(union([*computing, *collectives]), inside)) if kernels else None
    return Summary(len(steps), length(inside), spans, hidden, busy)


def _rest(known: Sequence[Event], collectives: Sequence[Interval], inside: Sequence[Interval]) -> float:
    """Return how long the host waited for others' words outside of any collective that the trace shows."""
    waiting = overlap(union(_named(known, PREFIX + "communication")), inside)
    return length(waiting) - length(overlap(waiting, collectives))


def _waits(name: str) -> bool:
    return name.startswith(("c10d::", "DistributedDataParallel", "torch.distributed")) or bool(_COLLECTIVE.search(name))


def spell(summary: Summary) -> str:
    """Lay a summary out: milliseconds a step, and shares of it."""
    steps = max(summary.steps, 1)
    known = {**summary.spans, "other": max(summary.total - sum(summary.spans.values()), 0.0)}
    lines = [f"{summary.steps} steps of {summary.total / steps / 1e3:.1f} ms:"]
    lines += [f"  {name:<14}{us / steps / 1e3:9.1f} ms {us / max(summary.total, 1):7.1%}" for name, us in known.items()]
    lines.append(f"  communication behind computation: {summary.hidden / steps / 1e3:.1f} ms")
    if summary.busy is not None:
        lines.append(
            f"  the device was busy {summary.busy / max(summary.total, 1):.1%} of the time; spans are the host's"
        )
    return "\n".join(lines)


def _named(events: Iterable[Event], name: str) -> list[Interval]:
    return [_interval(e) for e in events if e["name"] == name and e.get("cat") == "user_annotation"]


def _interval(event: Event) -> Interval:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals; the result rises and does not overlap."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def overlap(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """Return what two merged lists have in common."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            found.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Return how long merged intervals are together."""
    return sum(end - start for start, end in intervals)

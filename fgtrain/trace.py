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
_COPIES = ("gpu_memcpy", "gpu_memset")
_DEVICE = ("kernel", *_COPIES)

Interval = tuple[float, float]
Event = Mapping[str, Any]


class Device(NamedTuple):
    """Microseconds of a device, each counted once: they and `idle` add up to the steps.

    `communication` is what is left of collectives when nothing computes meanwhile, `copies` of copies when there is
    neither a computation nor a collective.
    """

    compute: float
    copies: float
    communication: float
    idle: float


class Summary(NamedTuple):
    """Microseconds: of all steps together, of each span on the host, and of the device where there is one.

    Without a device the host computes and communicates itself: its `communication` has what is left of collectives when
    nothing computes meanwhile, and backward is without that. With one, every span is just how long the host was in it.
    """

    steps: int
    total: float
    spans: dict[str, float]
    hidden: float  # of collectives, behind computation
    device: Device | None


def summarise(events: Iterable[Event]) -> Summary:
    """Add up a trace; spans are the annotations of our own, in the steps that are whole."""
    known = [e for e in events if e.get("ph") == "X"]
    steps = _named(known, STEP)
    inside = union(steps)
    spans = {name: length(overlap(union(_named(known, PREFIX + name)), inside)) for name in SPANS}
    on_device = [e for e in known if e.get("cat") in _DEVICE]
    if on_device:
        device, hidden = _of_device(on_device, inside)
        return Summary(len(steps), length(inside), spans, hidden, device)
    collectives = overlap(union(_interval(e) for e in known if _COLLECTIVE.search(e["name"])), inside)
    computing = union(_interval(e) for e in known if e.get("cat") == "cpu_op" and not _waits(e["name"]))
    spans["backward"] -= length(less(overlap(collectives, union(_named(known, PREFIX + "backward"))), computing))
    exposed = less(collectives, computing)
    spans["communication"] = length(exposed) + _rest(known, collectives, inside)
    return Summary(len(steps), length(inside), spans, length(collectives) - length(exposed), None)


def _of_device(events: Iterable[Event], inside: Sequence[Interval]) -> tuple[Device, float]:
    """Return what a device did in the steps, and how long it exchanged behind its computation."""
    kinds: dict[str, list[Interval]] = {"compute": [], "copies": [], "collectives": []}
    for e in events:
        kind = "collectives" if _COLLECTIVE.search(e["name"]) else "copies" if e["cat"] in _COPIES else "compute"
        kinds[kind].append(_interval(e))
    compute, copies, collectives = (overlap(union(some), inside) for some in kinds.values())
    exposed = less(collectives, compute)
    busy = union([*compute, *collectives])
    alone = less(copies, busy)
    idle = length(inside) - length(busy) - length(alone)
    device = Device(length(compute), length(alone), length(exposed), idle)
    return device, length(collectives) - length(exposed)


def _rest(known: Sequence[Event], collectives: Sequence[Interval], inside: Sequence[Interval]) -> float:
    """Return how long the host waited for others' words outside of any collective that the trace shows."""
    waiting = overlap(union(_named(known, PREFIX + "communication")), inside)
    return length(waiting) - length(overlap(waiting, collectives))


def _waits(name: str) -> bool:
    return name.startswith(("c10d::", "DistributedDataParallel", "torch.distributed")) or bool(_COLLECTIVE.search(name))


def spell(summary: Summary) -> str:
    """Lay a summary out: milliseconds a step, and shares of it; of the host, and then of the device if there is one."""
    steps = max(summary.steps, 1)
    known = {**summary.spans, "other": max(summary.total - sum(summary.spans.values()), 0.0)}
    where = ", the host's time" if summary.device else ""
    lines = [f"{summary.steps} steps of {summary.total / steps / 1e3:.1f} ms{where}:", *_block(known, summary)]
    if summary.device:
        lines += ["  the device's time:", *_block(summary.device._asdict(), summary)]
    lines.append(f"  communication behind computation: {summary.hidden / steps / 1e3:.1f} ms")
    return "\n".join(lines)


def _block(parts: Mapping[str, float], summary: Summary) -> list[str]:
    steps, total = max(summary.steps, 1), max(summary.total, 1)
    return [f"  {name:<14}{us / steps / 1e3:9.1f} ms {us / total:7.1%}" for name, us in parts.items()]


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


def less(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """Return what is in the first merged list and not in the second."""
    if not a:
        return []
    first, last = a[0][0], a[-1][1]
    edges = [first, *(edge for interval in b for edge in interval), last]
    gaps = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    return overlap(a, gaps)


def length(intervals: Iterable[Interval]) -> float:
    """Return how long merged intervals are together."""
    return sum(end - start for start, end in intervals)

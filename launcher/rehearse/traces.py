"""Spot traces: which nodes were there when. Pure but for reading the file.

Two forms are read. Bamboo's: a line `ms,add|remove,node` for each change. And JSON, `{"metadata": {"gap_seconds": s},
"data": [nodes available per tick]}`, which names no nodes: when the count falls, the oldest go, the choice that
interrupts a run most.

Source: Thorpe et al., "Bamboo", NSDI 2023 (its `traces/`); Wu et al., "Can't Be Late", NSDI 2024 (its `spot-traces`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

from fgtrain.errors import UserError


class Change(NamedTuple):
    """A node appears (`here`) or is lost, `at_s` seconds after the trace begins."""

    at_s: float
    node: str
    here: bool


class Trace(NamedTuple):
    """Changes in order of time, and when the trace ends, in seconds."""

    changes: tuple[Change, ...]
    end_s: float


class Statistics(NamedTuple):
    """What a trace is like.

    `interruptions` counts the instants at which nodes are lost, `losses` the nodes. `mtbf_s` is the mean time between
    interruptions while any node is there, `node_mtbf_s` how long a node lasts; None where nothing is ever lost.
    """

    hours: float
    node_hours: float
    least: int
    most: int
    losses: int
    interruptions: int
    mtbf_s: float | None
    node_mtbf_s: float | None


def read_trace(file: Path) -> Trace:
    """Read a trace of either form.

    Raises:
        UserError: names the file, the line (or the field) and what is wrong there.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--trace {file}: cannot be read: {error}") from error
    trace = _from_json(text, file) if text.lstrip().startswith("{") else _from_lines(text, file)
    if not trace.changes or trace.end_s <= 0:
        raise UserError(f"--trace {file}: no node ever appears in it, or it has no length")
    return trace


def _from_lines(text: str, file: Path) -> Trace:
    changes: list[Change] = []
    here: set[str] = set()
    last = 0.0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"--trace {file}:{number}: {line.strip()!r}"
        change = _change(line, where)
        if change.at_s < last:
            raise UserError(f"{where}: earlier than the line before; sort the lines by time")
        if change.here == (change.node in here):
            said = "is here already" if change.here else "is not here"
            raise UserError(f"{where}: {change.node} {said}; each node is added once before it is removed")
        (here.add if change.here else here.remove)(change.node)
        last = change.at_s
        changes.append(change)
    return Trace(tuple(changes), last)


def _change(line: str, where: str) -> Change:
    match [word.strip() for word in line.split(",")]:
        case [ms, ("add" | "remove") as what, node] if ms.isascii() and ms.isdigit() and node:
            return Change(int(ms) / 1000, node, what == "add")
    raise UserError(f"{where}: not `milliseconds,add|remove,node`, such as `60000,add,node19`")


def _from_json(text: str, file: Path) -> Trace:
    try:
        found = json.loads(text)
    except ValueError as error:
        at = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"--trace {file}{at}: not JSON: {error}") from error
    metadata = found.get("metadata")
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 < gap < float("inf"):
        raise UserError(f"--trace {file}: metadata.gap_seconds is {gap!r}, and must be a number of seconds above 0")
    counts = found.get("data")
    if not isinstance(counts, list) or not counts:
        raise UserError(f"--trace {file}: data is not a list of how many nodes there are at each tick")
    for index, value in enumerate(counts):
        _check_count(value, f"--trace {file}: data[{index}]")
    return Trace(tuple(_from_counts(counts, float(gap))), len(counts) * float(gap))


def _check_count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where} is {value!r}, and must be a number of nodes: 0, 1, 2, ...")


def _from_counts(counts: list[int], gap_s: float) -> Iterator[Change]:
    here: list[str] = []
    names = (f"node{i}" for i in count(1))
    for tick, wanted in enumerate(counts):
        while len(here) > wanted:
            yield Change(tick * gap_s, here.pop(0), False)
        while len(here) < wanted:
            here.append(next(names))
            yield Change(tick * gap_s, here[-1], True)


def random_trace(nodes: int, node_mtbf_s: float, away_s: float, end_s: float, seed: int = 0) -> Trace:
    """Make a trace of nodes that are lost independently, at a constant rate, and replaced after `away_s` seconds."""
    draw = random.Random(seed)
    changes = [Change(0.0, f"node{i}.0", True) for i in range(nodes)]
    for i in range(nodes):
        at, life = draw.expovariate(1 / node_mtbf_s), 0
        while at < end_s:
            changes.append(Change(at, f"node{i}.{life}", False))
            life += 1
            if at + away_s < end_s:
                changes.append(Change(at + away_s, f"node{i}.{life}", True))
            at += away_s + draw.expovariate(1 / node_mtbf_s)
    return Trace(tuple(sorted(changes, key=lambda c: c.at_s)), end_s)


def first(trace: Trace, end_s: float) -> Trace:
    """Return a trace's beginning."""
    return Trace(tuple(c for c in trace.changes if c.at_s < end_s), min(trace.end_s, end_s))


def faster(trace: Trace, speed: float) -> Trace:
    """Compress a trace in time."""
    return Trace(tuple(c._replace(at_s=c.at_s / speed) for c in trace.changes), trace.end_s / speed)


def noticed(trace: Trace, notice_s: float) -> Trace:
    """Let each node go `notice_s` before it is lost, as it does when a notice comes that much ahead."""
    begun: dict[str, float] = {}
    moved = []
    for change in trace.changes:
        if change.here:
            begun[change.node] = change.at_s
            moved.append(change)
        else:
            moved.append(change._replace(at_s=max(begun[change.node], change.at_s - notice_s)))
    return Trace(tuple(sorted(moved, key=lambda c: c.at_s)), trace.end_s)


def instants(trace: Trace) -> Iterator[tuple[float, list[Change]]]:
    """Yield what changes at the same time together."""
    for at_s, group in groupby(trace.changes, key=lambda c: c.at_s):
        yield at_s, list(group)


def counts(trace: Trace) -> Iterator[tuple[float, int]]:
    """Yield (seconds, nodes): for how long how many nodes were there, from the trace's beginning to its end."""
    last, here = 0.0, 0
    for at_s, group in instants(trace):
        yield at_s - last, here
        last, here = at_s, here + sum(1 if c.here else -1 for c in group)
    yield trace.end_s - last, here


def availability(trace: Trace, nodes: int) -> float:
    """Return the share of the time with at least so many nodes."""
    return sum(s for s, n in counts(trace) if n >= nodes) / trace.end_s


def statistics(trace: Trace) -> Statistics:
    """Return what a trace is like."""
    stretches = [(s, n) for s, n in counts(trace) if s > 0]
    losses = sum(not c.here for c in trace.changes)
    interruptions = sum(any(not c.here for c in group) for _, group in instants(trace))
    node_s = sum(s * n for s, n in stretches)
    return Statistics(
        hours=trace.end_s / 3600,
        node_hours=node_s / 3600,
        least=min(n for _, n in stretches),
        most=max(n for _, n in stretches),
        losses=losses,
        interruptions=interruptions,
        mtbf_s=sum(s for s, n in stretches if n) / interruptions if interruptions else None,
        node_mtbf_s=node_s / losses if losses else None,
    )

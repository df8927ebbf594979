"""From a trace's nodes to the places of a run: who fills which, and who steps in. Pure.

A run has places 0 to N - 1. A node that appears fills the first empty place, or waits as a spare. When a place loses
its node, the spare that has waited longest takes over at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

from launcher.rehearse.traces import Trace, instants


class Moves(NamedTuple):
    """What happens at one instant: these places lose their nodes, then these get new ones (of both, perhaps)."""

    at_s: float
    lost: tuple[int, ...]
    filled: tuple[int, ...]


def places(trace: Trace, count: int) -> list[Moves]:
    """Return what happens to `count` places of a run, in order of time."""
    return [m for m in _places(trace, count) if m.lost or m.filled]


def _places(trace: Trace, count: int) -> Iterator[Moves]:
    empty = list(range(count))
    place: dict[str, int] = {}
    spares: dict[str, None] = {}  # in order of arrival
    for at_s, group in instants(trace):
        lost = []
        for change in group:
            if change.here:
                spares[change.node] = None
            elif change.node in place:
                lost.append(place.pop(change.node))
            else:
                del spares[change.node]
        for number in lost:
            heappush(empty, number)
        filled = []
        for node in list(islice(spares, len(empty))):
            del spares[node]
            place[node] = heappop(empty)
            filled.append(place[node])
        yield Moves(at_s, tuple(lost), tuple(filled))


def held_s(moves: Sequence[Moves], end_s: float) -> float:
    """Return for how long places are filled, summed over all of them, in node-seconds."""
    total, last, filled = 0.0, 0.0, 0
    for move in moves:
        total += filled * (move.at_s - last)
        last, filled = move.at_s, filled + len(move.filled) - len(move.lost)
    return total + filled * max(0.0, end_s - last)


def short_of(moves: Sequence[Moves], least: int, end_s: float) -> list[tuple[float, float]]:
    """Return the intervals (begin, end) in which fewer than `least` places are filled."""
    found, since, filled = [], 0.0, 0
    for move in moves:
        before, filled = filled, filled + len(move.filled) - len(move.lost)
        if before < least <= filled and move.at_s > since:
            found.append((since, move.at_s))
        if before >= least > filled:
            since = move.at_s
    return [*found, (since, end_s)] if filled < least and end_s > since else found

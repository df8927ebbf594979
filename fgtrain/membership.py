"""Who takes part in a run: the rounds in which agents meet, as pure steps from one state to the next. Light.

A round forms, is complete, and is broken up when a member is lost, begins again, or lets somebody in. Members of the
round before are waited for (their agents are alive until somebody finds them silent); seats that they do not need go to
whoever waits, in order of arrival. What is left waiting are hot spares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import msgspec

_NEW = 1 << 30  # ranks behind all who have one


class Member(msgspec.Struct, frozen=True):
    """One agent: its own name, the node that it stands for, its rank in the last complete round (-1: none)."""

    id: str
    node: str
    rank: int = -1


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """What the agents of a run have agreed on.

    `members`: of a complete round in order of rank, of a forming one those that have come. `expected`: of the round
    before, still to come. `why`: what broke up the round before; `silent_s`: for how long somebody was silent before
    it did; `gentle`: workers leave by themselves, do not kill them at once.
    """

    round: int = 0
    complete: bool = False
    closed: bool = False
    members: tuple[Member, ...] = ()
    expected: tuple[Member, ...] = ()
    waiting: tuple[Member, ...] = ()
    why: str = ""
    silent_s: float = 0.0
    gentle: bool = False

    def has(self, id_: str) -> bool:
        """Tell whether an agent is a member of the round."""
        return any(m.id == id_ for m in self.members)

    def everyone(self) -> tuple[Member, ...]:
        """Return all agents that the meeting knows of."""
        return (*self.members, *self.expected, *self.waiting)


class Seats(NamedTuple):
    """How many nodes a round takes."""

    least: int
    most: int


def growth(meeting: Meeting, seats: Seats) -> int:
    """Return how many of those who wait a complete round has room for."""
    return min(len(meeting.waiting), seats.most - len(meeting.members)) if meeting.complete else 0


def come(meeting: Meeting, me: Member, seats: Seats, *, left: bool = False) -> Meeting:
    """Return the meeting after `me` has asked to take part in its next round; asking again changes nothing.

    `left`: the workers of the round before were asked to leave, and did, in agreement with all others.
    """
    if meeting.closed:
        return meeting
    meeting = _replaced(meeting, me)
    if meeting.complete and meeting.has(me.id):
        joins = growth(meeting, seats) > 0
        why = "nodes join" if joins else "workers were asked to leave" if left else f"{me.node} begins again"
        meeting = _broken(meeting, why, gentle=joins or left)
    if me.id not in {m.id for m in meeting.everyone()}:
        meeting = msgspec.structs.replace(meeting, waiting=(*meeting.waiting, me))
    if not meeting.complete:
        here = tuple(m for m in meeting.expected if m.id == me.id)
        still = tuple(m for m in meeting.expected if m.id != me.id)
        meeting = msgspec.structs.replace(meeting, members=(*meeting.members, *here), expected=still)
    return _seated(meeting, seats)


def lose(meeting: Meeting, lost: Iterable[str], why: str, seats: Seats, silent_s: float = 0.0) -> Meeting:
    """Return the meeting without some agents; a complete round that has one of them is broken up."""
    gone = set(lost)
    if meeting.closed or not any(m.id in gone for m in meeting.everyone()):
        return meeting
    if meeting.complete and any(meeting.has(id_) for id_ in gone):
        meeting = _broken(meeting, why, silent_s=silent_s)
    elif any(m.id in gone for m in meeting.expected):  # its silence began before the round was over, or after
        meeting = msgspec.structs.replace(meeting, why=why)
    return _seated(_each(meeting, lambda m: m.id not in gone), seats)


def complete(meeting: Meeting, seats: Seats, *, quiet: bool) -> Meeting:
    """Complete the round if it can be: all seats are taken, or enough of them and nobody else is expected.

    Args:
        meeting: as it is.
        seats: how many may take part.
        quiet: whether nobody has come for a while; the first round waits for that, later ones know whom to expect.
    """
    enough = len(meeting.members) >= seats.least and not meeting.expected
    known = any(m.rank >= 0 for m in meeting.members)
    if meeting.closed or meeting.complete or not enough:
        return meeting
    if len(meeting.members) < seats.most and not known and not quiet:
        return meeting
    order = sorted(meeting.members, key=lambda m: (m.rank if m.rank >= 0 else _NEW, _natural(m.node), m.id))
    ranked = tuple(msgspec.structs.replace(m, rank=rank) for rank, m in enumerate(order))
    return msgspec.structs.replace(meeting, members=ranked, complete=True)


def moved(meeting: Meeting, why: str, lost: Collection[str] = ()) -> Meeting:
    """Return the meeting as it begins in another store: but for lost nodes, whoever had a rank is expected.

    Who waits comes by itself, and so do the lost.
    """
    if meeting.closed:
        return meeting
    known = {m.node: m for m in (*meeting.expected, *meeting.members) if m.rank >= 0 and m.node not in lost}
    broken = _broken(meeting, why) if meeting.complete else msgspec.structs.replace(meeting, members=())
    return msgspec.structs.replace(broken, expected=tuple(known.values()), waiting=())


def close(meeting: Meeting) -> Meeting:
    """Return the meeting as it is when the work is done."""
    return msgspec.structs.replace(meeting, closed=True)


def _broken(meeting: Meeting, why: str, *, silent_s: float = 0.0, gentle: bool = False) -> Meeting:
    return msgspec.structs.replace(
        meeting,
        round=meeting.round + 1,
        complete=False,
        members=(),
        expected=meeting.members,
        why=why,
        silent_s=silent_s,
        gentle=gentle,
    )


def _replaced(meeting: Meeting, me: Member) -> Meeting:
    """Drop an earlier agent of the same node: it is gone, or about to be."""
    older = [m.id for m in meeting.everyone() if m.node == me.node and m.id != me.id]
    if not older:
        return meeting
    if meeting.complete and any(meeting.has(id_) for id_ in older):
        meeting = _broken(meeting, f"{me.node} has a new agent")
    return _each(meeting, lambda m: m.id not in older)


def _each(meeting: Meeting, stays: Callable[[Member], bool]) -> Meeting:
    return msgspec.structs.replace(
        meeting,
        members=tuple(m for m in meeting.members if stays(m)),
        expected=tuple(m for m in meeting.expected if stays(m)),
        waiting=tuple(m for m in meeting.waiting if stays(m)),
    )


def _seated(meeting: Meeting, seats: Seats) -> Meeting:
    """Give free seats of a forming round to those who wait."""
    if meeting.complete:
        return meeting
    free = max(0, seats.most - len(meeting.members) - len(meeting.expected))
    return msgspec.structs.replace(
        meeting, members=(*meeting.members, *meeting.waiting[:free]), waiting=meeting.waiting[free:]
    )


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts node2 before node10."""
    words: list[tuple[int, int | str]] = []
    for char in name:
        if char.isdigit() and words and words[-1][0] == 0:
            words[-1] = (0, int(words[-1][1]) * 10 + int(char))
        else:
            words.append((0, int(char)) if char.isdigit() else (1, char))
    return tuple(words)


class Silence:
    """Finds who has fallen silent, by this process's clock alone: the nodes' clocks need not agree.

    A stall of this process is no silence of another's: between two looks, no more than `cap_s` is counted.
    """

    def __init__(self, limit_s: float, cap_s: float) -> None:
        self._limit_s, self._cap_s = limit_s, cap_s
        self._beats: dict[str, int] = {}
        self._silent: dict[str, float] = {}
        self._looked: float | None = None

    def look(self, beats: dict[str, int], now: float) -> dict[str, float]:
        """Take in how often each has beaten so far; returns who is silent, with for how long (seconds)."""
        passed = 0.0 if self._looked is None else min(now - self._looked, self._cap_s)
        self._looked = now
        self._silent = {
            id_: self._silent.get(id_, 0.0) + passed if self._beats.get(id_) == beat else 0.0
            for id_, beat in beats.items()
        }
        self._beats = dict(beats)
        return {id_: s for id_, s in self._silent.items() if s >= self._limit_s}

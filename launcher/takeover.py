"""Who supervises a run: terms of office in its store. The highest number acts, every other one stops acting.

A number is taken by a conditional create. Where the vendor ignores the condition, two may believe to have the same one:
the record then bears the token of one of them, and the other finds that it does not hold the office.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import Any

import msgspec

from cluster import Node
from fgtrain.errors import KeyExists, KeyMissing
from fgtrain.plan import World
from fgtrain.runstore import RunStore
from launcher.status import process_token

_FOLDER = "supervisors"


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """`supervisors/<number>.json`: one supervisor, and all that another needs to go on with what it has started.

    `started` in Unix seconds; `endpoint` is where agents meet, empty before anything was started, and `place` the node
    that it is on, which may be none of the run's any more; `agents` are their process IDs by node; `heir_of` is the
    first supervisor, by number, whose agents this one has taken over (0: none). `probation` are nodes that are not
    counted on yet, `gone` those that are done without and on which something may still run.
    """

    number: int
    token: str
    host: str
    pid: int
    process: str
    started: float
    cluster: str
    world: World
    endpoint: str = ""
    place: Node | None = None
    nodes: tuple[Node, ...] = ()
    agents: dict[str, int] = {}
    heir_of: int = 0
    probation: tuple[str, ...] = ()
    gone: tuple[Node, ...] = ()

    @property
    def places(self) -> tuple[Node, ...]:
        """All nodes that something of it may run on."""
        return tuple(dict.fromkeys([*self.nodes, *self.gone, *([self.place] if self.place else [])]))

    @property
    def since(self) -> int:
        """The first supervisor whose agents are in this one's hands; what others before have started is not."""
        return self.heir_of or self.number


class Office:
    """The office of one run's supervisor, as the one who took it sees it."""

    def __init__(self, runs: RunStore, term: Term) -> None:
        self._runs = runs
        self.term = term

    def held(self) -> bool:
        """Tell whether this supervisor is still the one who acts.

        Raises:
            StoreError: the store does not answer.
        """
        newest = last_term(self._runs)
        return newest is not None and (newest.number, newest.token) == (self.term.number, self.term.token)

    def inherit(self, earlier: Term) -> None:
        """Have what an earlier supervisor has started in hand; noted with the next `record`."""
        self.term = msgspec.structs.replace(self.term, heir_of=earlier.since)

    def record(self, **changes: Any) -> None:
        """Note what has been started."""
        self.term = msgspec.structs.replace(self.term, **changes)
        self._runs.write(_name(self.term.number), self.term)


def take_office(runs: RunStore, cluster: str, world: World) -> Office:
    """Become the supervisor of a run; whoever was it before is not any more."""
    number = max(_numbers(runs), default=0) + 1
    while True:
        term = Term(
            number=number,
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            process=process_token(os.getpid()) or "",
            started=time.time(),
            cluster=cluster,
            world=world,
        )
        try:
            runs.create(_name(number), term)
        except KeyExists:
            number += 1
            continue
        return Office(runs, term)


def last_term(runs: RunStore, cluster: str | None = None) -> Term | None:
    """Return the newest supervisor's record, None if the run never had one, or (if named) not on this cluster.

    Raises:
        Corrupt: it cannot be read.
    """
    numbers = _numbers(runs)
    try:
        newest = runs.read(_name(max(numbers)), Term) if numbers else None
    except KeyMissing:
        return None
    return newest if newest is None or cluster in (None, newest.cluster) else None


def _numbers(runs: RunStore) -> list[int]:
    return [int(e.key.rsplit("/", 1)[1].removesuffix(".json")) for e in runs.store.list(runs.key(_FOLDER + "/"))]


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:05d}.json"

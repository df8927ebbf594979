"""What agents have agreed on, as it lies in the TCPStore that they meet in; and finding that store."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import msgspec
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from fgtrain.endpoint import Endpoint, Place
from fgtrain.membership import Meeting, Member, Seats, moved

_CONNECT_S = 10.0  # for one try
_PROBE_S = 1.0
_ANSWER_S = 60.0
_AGAIN_S = 0.1
_KEY = "meeting"


class NoStore(Exception):  # noqa: N818  (as the user would say it)
    """There is no store to meet in, and none came."""


class Settings(NamedTuple):
    """Where and how to meet. `last_call_s`: how long the first round waits for more than the fewest nodes."""

    where: Endpoint
    run: str
    me: Member
    seats: Seats
    detect_s: float
    last_call_s: float


class Board:
    """The state in the store, over a connection of its own: an operation that waits holds up no other's."""

    def __init__(self, place: Place, begin: Meeting) -> None:
        """Connect; a store that is new begins with this meeting.

        Raises:
            DistError: there is no store.
        """
        self.place = place
        timeout = timedelta(seconds=_CONNECT_S)
        self.store = TCPStore(place.host, place.port, is_master=False, timeout=timeout, wait_for_workers=False)
        self.store.set_timeout(timedelta(seconds=_ANSWER_S))
        for member in begin.everyone():
            self.store.add(f"beat/{member.id}", 0)
        self.store.compare_set(_KEY, "", msgspec.json.encode(begin).decode())

    def read(self) -> Meeting:
        """Return the meeting as it is."""
        return msgspec.json.decode(self.store.get(_KEY), type=Meeting)

    def change(self, step: Callable[[Meeting], Meeting]) -> Meeting:
        """Take a step, again if somebody else was quicker; returns the meeting after it."""
        old: bytes = self.store.get(_KEY)
        while True:
            new = msgspec.json.encode(step(msgspec.json.decode(old, type=Meeting)))
            if new == old:
                return msgspec.json.decode(new, type=Meeting)
            there: bytes = self.store.compare_set(_KEY, old.decode(), new.decode())
            if there == new:
                return msgspec.json.decode(new, type=Meeting)
            old = there

    def beat(self, id_: str) -> None:
        """Count up an agent's heartbeat."""
        self.store.add(f"beat/{id_}", 1)

    def beats(self, ids: list[str]) -> dict[str, int]:
        """Return heartbeats so far; of who is in the meeting, there is a count."""
        found = self.store.multi_get([f"beat/{id_}" for id_ in ids]) if ids else []
        return dict(zip(ids, map(int, found), strict=True))


def find(where: Endpoint, patience_s: float, last: Meeting | None = None) -> Board:
    """Connect to the store that agents meet in now, as soon as there is one; it may go on from the last meeting.

    Raises:
        NoStore: there was none for so long.
    """
    deadline = time.monotonic() + patience_s
    while True:
        place = where.now()
        begin = moved(last, "the store that agents met in is gone", place.lost) if last else Meeting()
        try:
            address = (place.host, place.port)
            socket.create_connection(address, _PROBE_S).close()  # a TCPStore that is not there is long waited for
            return Board(place, begin)
        except (DistError, OSError) as error:
            if time.monotonic() > deadline:
                raise NoStore(f"no store to meet in at {place.host}:{place.port}: {error}".splitlines()[0]) from error
        time.sleep(_AGAIN_S)

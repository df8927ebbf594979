"""Whose turn it is to delete: of all who prune, collect or set aside in a store, one at a time.

A turn is an object `housekeeping/<id>` of the holder's own. It is written first and the others are looked for
afterwards: of two that take a turn at once, at least one sees the other and steps back, without conditional writes. A
holder writes its object again while it works; that of one that was killed counts no more once it is `HOLD_S` old, and a
holder that finds itself paused for half of that (SIGSTOP, a closed laptop) gives up before it deletes anything more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fgtrain.errors import StoreError, StoreUnavailable, UserError
from fgtrain.stores import Store

HOLD_S = 600.0


class Turn:
    """The right to delete, until `clock` (seconds, monotonic) says that it is lost. Made by `turn`."""

    def __init__(self, store: Store, key: str, clock: Callable[[], float]) -> None:
        self.store = store
        self._key = key
        self._clock = clock
        self._write()

    def keep(self) -> None:
        """Make sure, before each deletion, that it is still our turn.

        Raises:
            StoreUnavailable: it is no more, or the store does not answer.
        """
        age = self._clock() - self._written
        if age > HOLD_S / 2:
            raise StoreUnavailable(f"housekeeping in {self.store.url} was paused for {age:.0f} s; start it again")
        if age > HOLD_S / 8:
            self._write()

    def _write(self) -> None:
        started = self._clock()  # before the write: the object is never older than we think
        self.store.put(self._key, b"")
        self._written = started


@contextmanager
def turn(store: Store, clock: Callable[[], float] = time.monotonic) -> Iterator[Turn]:
    """Hold the turn for the length of a `with`.

    Raises:
        UserError: someone else has it.
    """
    key = f"housekeeping/{uuid.uuid4().hex}"
    mine = Turn(store, key, clock)
    try:
        _look_around(store, key)
        yield mine
    finally:
        with suppress(StoreError):  # what was done is done; the object is ignored before long
            store.delete(key)


def _look_around(store: Store, key: str) -> None:
    now = store.head(key).modified
    for other in list(store.list("housekeeping/")):
        if other.key == key:
            continue
        age = now - other.modified
        if age < HOLD_S:
            raise UserError(
                f"someone else prunes or collects in {store.url}; try again when they are done"
                f" (if they were killed: in {max(0.0, HOLD_S - age) / 60:.0f} minutes)"
            )
        store.delete(other.key)

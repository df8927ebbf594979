"""Few at a time: turns that end by themselves, so that one that hangs holds up the others only for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_S = 0.2  # how soon it is seen that a turn is not wanted any more


class Turns:
    """Lets `places` of those who come have a turn at once, each for `most_s` seconds at most."""

    def __init__(self, places: int, most_s: float) -> None:
        self._places, self._most_s = places, most_s
        self._changed = threading.Condition()
        self._ends: dict[object, float] = {}

    @contextmanager
    def turn(self, unwanted: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """Wait for a turn, for as long as it is wanted; yields what ends it before this does."""
        mine = object()
        with self._changed:
            while not unwanted() and (wait_s := self._full_s()) > 0:
                self._changed.wait(min(wait_s, _LOOK_S))
            self._ends[mine] = time.monotonic() + self._most_s

        def over() -> None:
            with self._changed:
                self._ends.pop(mine, None)
                self._changed.notify_all()

        try:
            yield over
        finally:
            over()

    def _full_s(self) -> float:
        """Return for how long there is no place; 0: there is one."""
        now = time.monotonic()
        last = sorted((end for end in self._ends.values() if end > now), reverse=True)[: self._places]
        return last[-1] - now if len(last) == self._places else 0.0

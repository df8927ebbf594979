"""What is new in a folder of a run's corner of the store: each object is read once."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

from fgtrain.errors import Corrupt
from fgtrain.runstore import RunStore

T = TypeVar("T")


class News:
    """Remembers what was read."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._known: set[str] = set()

    def skip(self, *folders: str) -> None:
        """Pass over what is there already.

        Raises:
            StoreError: the store does not answer.
        """
        for folder in folders:
            self._known |= set(self._keys(folder))

    def read(self, folder: str, type_: type[T]) -> list[T]:
        """Return the objects that have come since, in key order; a damaged one is passed over.

        Raises:
            StoreError: the store does not answer; what has not been returned is tried again next time.
        """
        found = []
        fresh = [k for k in self._keys(folder) if k not in self._known]
        for key in fresh:
            with suppress(Corrupt):
                found.append(self._runs.read(key, type_))
        self._known |= set(fresh)
        return found

    def _keys(self, folder: str) -> list[str]:
        start = len(self._runs.prefix)
        return [e.key[start:] for e in self._runs.store.list(self._runs.key(folder + "/"))]

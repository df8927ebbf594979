"""`memory://name`: objects in this process, shared by every store of that name. For tests and dry runs."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from fgtrain.errors import KeyExists, KeyMissing, UserError
from fgtrain.stores import Abilities, Entry, probe, valid_key

_lock = threading.Lock()
_objects: defaultdict[str, dict[str, tuple[bytes, float]]] = defaultdict(dict)


class MemoryStore:
    """A named dictionary: key to bytes and time of last write, by `clock` (Unix seconds)."""

    def __init__(self, name: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.url = f"memory://{name}"
        with _lock:
            self._objects = _objects[name]

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`."""
        with _lock:
            self._objects[valid_key(key)] = (bytes(data), self._clock())

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.create`."""
        with _lock:
            if valid_key(key) in self._objects:
                raise KeyExists(f"{self.url}/{key}")
            self._objects[key] = (bytes(data), self._clock())

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store.get`."""
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"bytes [{start}, {end}) of {key!r}: positions count from the start")
        return self._find(key)[0][start:end]

    def head(self, key: str) -> Entry:
        """See `Store.head`."""
        data, modified = self._find(key)
        return Entry(key, len(data), modified)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`."""
        with _lock:
            found = [Entry(k, len(d), t) for k, (d, t) in self._objects.items() if k.startswith(prefix)]
        yield from sorted(found)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with _lock:
            self._objects.pop(valid_key(key), None)

    def check(self) -> Abilities:
        """See `Store.check`."""
        return probe(self)

    def _find(self, key: str) -> tuple[bytes, float]:
        with _lock:
            try:
                return self._objects[valid_key(key)]
            except KeyError:
                raise KeyMissing(f"{self.url}/{key}") from None


def open_store(url: str) -> MemoryStore:
    """Open, and make if need be, the store of this name.

    Raises:
        UserError: the URL names nothing.
    """
    name = url.removeprefix("memory://")
    if not name:
        raise UserError(f"store {url}: give it a name, as in memory://runs")
    return MemoryStore(name)

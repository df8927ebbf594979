"""A store that fails on purpose, in front of one that does not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from random import Random

from fgtrain.errors import KeyExists, StoreUnavailable
from fgtrain.stores import Abilities, Entry, Store


class Fault(Enum):
    """What happens to a request; one that cannot happen to this operation does not."""

    REFUSED = "StoreUnavailable, and nothing was done"
    LOST = "StoreUnavailable, and all was done"
    TORN = "StoreUnavailable, and half of the bytes of a put are there"
    TAKEN = "a create says KeyExists, and nothing was written (a proxy's 412)"
    STALE = "a list shows the objects of some requests ago"


APPLIES = {
    "put": {Fault.REFUSED, Fault.LOST, Fault.TORN},
    "create": {Fault.REFUSED, Fault.LOST, Fault.TAKEN},
    "get": {Fault.REFUSED},
    "head": {Fault.REFUSED},
    "list": {Fault.REFUSED, Fault.STALE},
    "delete": {Fault.REFUSED, Fault.LOST},
    "check": set[Fault](),
}

# From the number of the request, counted from 0, and the operation's name.
Plan = Callable[[int, str], Fault | None]


def at(faults: dict[int, Fault]) -> Plan:
    """These faults, at these requests."""
    return lambda number, operation: faults.get(number)


def first_of(operation: str, fault: Fault) -> Plan:
    """One fault, at the first request for this operation."""
    left = [fault]
    return lambda number, asked: left.pop() if asked == operation and left else None


def drawn(seed: int, rate: float, *faults: Fault) -> Plan:
    """Any of the faults, with this probability a request, the same for the same seed and number."""

    def plan(number: int, operation: str) -> Fault | None:
        random = Random(f"{seed}:{number}")
        possible = [f for f in faults if f in APPLIES[operation]]
        return random.choice(possible) if possible and random.random() < rate else None

    return plan


class FaultyStore:
    """`inner`, but for what `plan` says. `injected` tells what happened: (number, operation, fault).

    TORN is for a test of what reads the store: no store of this project does it. A STALE list shows the
    objects as they were `lag` requests ago.
    """

    def __init__(self, inner: Store, plan: Plan, lag: int = 3) -> None:
        self.inner = inner
        self.url = inner.url
        self.injected: list[tuple[int, str, Fault]] = []
        self._plan = plan
        self.requests = 0
        self._lock = threading.RLock()
        self._past: deque[list[Entry]] = deque(maxlen=lag)

    def put(self, key: str, data: bytes | memoryview) -> None:
        fault = self._begin("put", key)
        if fault is Fault.TORN:
            self.inner.put(key, bytes(data)[: len(bytes(data)) // 2])
        elif fault is not Fault.REFUSED:
            self.inner.put(key, data)
        self._end(fault, key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        fault = self._begin("create", key)
        if fault is Fault.TAKEN:
            raise KeyExists(f"{self.url}/{key} (injected)")
        if fault is not Fault.REFUSED:
            self.inner.create(key, data)
        self._end(fault, key)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._end(self._begin("get", key), key)
        return self.inner.get(key, start, end)

    def head(self, key: str) -> Entry:
        self._end(self._begin("head", key), key)
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        fault = self._begin("list", prefix)
        if fault is Fault.STALE:
            return (entry for entry in self._past[0] if entry.key.startswith(prefix))
        self._end(fault, prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        fault = self._begin("delete", key)
        if fault is not Fault.REFUSED:
            self.inner.delete(key)
        self._end(fault, key)

    def check(self) -> Abilities:
        return self.inner.check()

    def _begin(self, operation: str, key: str) -> Fault | None:
        """Number the request, remember the objects before it, and look up its fate."""
        with self._lock:
            self._past.append(list(self.inner.list()))
            fault = self._plan(self.requests, operation)
            if fault not in APPLIES[operation]:
                fault = None
            if fault is not None:
                self.injected.append((self.requests, operation, fault))
            self.requests += 1
            return fault

    def _end(self, fault: Fault | None, key: str) -> None:
        if fault is not None:
            raise StoreUnavailable(f"{self.url}/{key}: injected fault: {fault.name}")

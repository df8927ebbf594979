"""The faults do what they say, and a caller that tries again gets past those that a caller can get past."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest

from fgtrain.errors import KeyExists, KeyMissing, StoreUnavailable
from fgtrain.stores import Abilities, Entry, Store, open_store
from tests.contracts.store import StoreContract
from tests.testbed.faulty_store import Fault, FaultyStore, Plan, at, drawn, first_of

T = TypeVar("T")
TRIES = 20


def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4()}")


def faulty(plan: Plan) -> FaultyStore:
    return FaultyStore(memory(), plan)


def test_refused_put_did_nothing() -> None:
    store = faulty(at({0: Fault.REFUSED}))
    with pytest.raises(StoreUnavailable, match="REFUSED"):
        store.put("k", b"x")
    assert list(store.list()) == []


def test_lost_put_create_and_delete_did_all() -> None:
    store = faulty(at({0: Fault.LOST, 1: Fault.LOST, 2: Fault.LOST}))
    with pytest.raises(StoreUnavailable):
        store.put("p", b"x")
    with pytest.raises(StoreUnavailable):
        store.create("c", b"y")
    with pytest.raises(StoreUnavailable):
        store.delete("p")
    assert [e.key for e in store.list()] == ["c"]
    assert store.get("c") == b"y"


def test_torn_put_left_half() -> None:
    store = faulty(at({0: Fault.TORN}))
    with pytest.raises(StoreUnavailable):
        store.put("k", b"0123456789")
    assert store.get("k") == b"01234"


def test_create_that_is_told_taken_wrote_nothing() -> None:
    store = faulty(first_of("create", Fault.TAKEN))
    with pytest.raises(KeyExists):
        store.create("k", b"x")
    with pytest.raises(KeyMissing):
        store.get("k")
    store.create("k", b"x")


def test_stale_list_shows_the_past() -> None:
    store = FaultyStore(memory(), at({4: Fault.STALE}), lag=3)
    for number in range(4):
        store.put(str(number), b"")
    assert [e.key for e in store.list()] == ["0", "1"]
    assert [e.key for e in store.list()] == ["0", "1", "2", "3"]


def test_same_seed_gives_the_same_faults() -> None:
    def run(seed: int) -> list[tuple[int, str, Fault]]:
        store = faulty(drawn(seed, 0.3, *Fault))
        for number in range(100):
            with suppress(StoreUnavailable, KeyExists):
                store.create(str(number % 7), b"data")
            with suppress(StoreUnavailable):
                store.put(str(number % 7), b"data")
            with suppress(StoreUnavailable):
                store.list()
        return store.injected

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert {fault for _, _, fault in run(1)} == set(Fault)


class Persistent:
    """What a careful caller does: it tries again, and settles a doubtful create by reading the object."""

    def __init__(self, inner: FaultyStore) -> None:
        self.inner = inner
        self.url = inner.url

    def put(self, key: str, data: bytes | memoryview) -> None:
        again(lambda: self.inner.put(key, data))

    def create(self, key: str, data: bytes | memoryview) -> None:
        doubtful = False
        for _ in range(TRIES):
            try:
                return self.inner.create(key, data)
            except StoreUnavailable:
                doubtful = True
            except KeyExists:
                if doubtful and self.get(key) == bytes(data):
                    return None
                raise
        raise AssertionError("too many faults")

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return again(lambda: self.inner.get(key, start, end))

    def head(self, key: str) -> Entry:
        return again(lambda: self.inner.head(key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return again(lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        again(lambda: self.inner.delete(key))

    def check(self) -> Abilities:
        return self.inner.check()


def again(call: Callable[[], T]) -> T:
    for _ in range(TRIES):
        with suppress(StoreUnavailable):
            return call()
    raise AssertionError("too many faults")


class TestPersistentCallerOfAFaultyStore(StoreContract):
    """Refused and lost requests, at a third of all: the whole contract holds for one who tries again."""

    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        inner = faulty(drawn(11, 0.3, Fault.REFUSED, Fault.LOST))
        yield Persistent(inner)
        if inner.requests > 20:
            assert inner.injected, request.node.name

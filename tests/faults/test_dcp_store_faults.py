"""A store that fails, or damages what it holds, under the StorageWriter and StorageReader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fgtrain.dcp import blocks as cutting
from fgtrain.dcp import checkpoints
from fgtrain.errors import KeyExists, StoreUnavailable
from fgtrain.stores.memory import MemoryStore
from tests.testbed.checkpoints import CheckpointException, assert_same, blank, cause, load, save
from tests.testbed.faulty_store import Fault, FaultyStore, at

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

OLD = {"frozen": torch.arange(300.0), "head": torch.zeros(300), "bias": torch.ones(3), "step": 1}
NEW = {**OLD, "head": torch.ones(300), "bias": torch.full((3,), 2.0), "step": 2}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks for each tensor, and some with several blocks."""
    monkeypatch.setattr(cutting, "CHUNK_BYTES", 512)
    monkeypatch.setattr(cutting, "PACK_BELOW", 256)


def fresh(name: str) -> MemoryStore:
    store = MemoryStore(name)
    for entry in list(store.list()):
        store.delete(entry.key)
    return store


def requests_of_a_save() -> int:
    store = fresh("counted")
    save(OLD, store, "old")
    counted = FaultyStore(store, at({}))
    save(NEW, counted, "new")
    return counted.requests


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.TORN, Fault.TAKEN, Fault.STALE])
def test_a_fault_at_any_request_commits_all_or_nothing(fault: Fault) -> None:
    outcomes = set()
    requests = requests_of_a_save()
    assert requests > 8
    for number in range(requests):
        store = fresh(f"{fault.name}-{number}")
        save(OLD, store, "old")
        faulty = FaultyStore(store, at({number: fault}))
        try:
            save(NEW, faulty, "new", threads=1)
        except CheckpointException as error:
            assert isinstance(error.failures[0][0], StoreUnavailable | KeyExists)
        committed = checkpoints(store, "job")
        assert committed in (["old"], ["old", "new"])
        assert_same(load(blank(OLD), store, "old"), OLD)
        assert_same(load(blank(OLD), store), NEW if "new" in committed else OLD)
        outcomes.add((bool(faulty.injected), len(committed)))
        save(NEW, store, "again")  # torn chunks left behind are written anew
        assert_same(load(blank(NEW), store, "again"), NEW)
    assert any(injected for injected, _ in outcomes)


@pytest.mark.parametrize("fault", [Fault.REFUSED])
def test_a_fault_at_any_request_of_a_load_is_told(fault: Fault) -> None:
    store = fresh("loads")
    save(OLD, store, "old")
    counted = FaultyStore(store, at({}))
    load(blank(OLD), counted)
    for number in range(counted.requests):
        error = cause(lambda n=number: load(blank(OLD), FaultyStore(store, at({n: fault})), threads=1))
        assert "injected fault" in str(error)


def cut_off(data: bytes) -> Iterator[bytes]:
    yield from (b"", data[:1], data[: len(data) // 2], data[:-1])


def flipped(data: bytes) -> Iterator[bytes]:
    for n in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
        yield data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :]


def zeroed(data: bytes) -> Iterator[bytes]:
    yield bytes(len(data))


@pytest.mark.parametrize("damage", [cut_off, flipped, zeroed])
def test_damage_to_any_object_is_found_by_the_load(damage: Callable[[bytes], Iterator[bytes]]) -> None:
    store = fresh("damaged")
    state: dict[str, Any] = {**OLD, "head": torch.randn(300)}
    save(state, store, "old")
    keys = [e.key for e in store.list()]
    assert len(keys) > 6
    for key in keys:
        whole = store.get(key)
        for damaged in damage(whole):
            store.put(key, damaged)
            message = str(cause(lambda: load(blank(state), store)))
            assert "does not hold what was written" in message or "checksum does not match" in message
        store.put(key, whole)
    assert_same(load(blank(state), store), state)


def test_a_missing_chunk_is_named_with_what_it_held() -> None:
    store = fresh("missing")
    save({"head": torch.randn(100)}, store, "old")
    [chunk] = [e.key for e in store.list("job/chunks/")]
    store.delete(chunk)
    assert "head: chunk" in str(cause(lambda: load({"head": torch.zeros(100)}, store)))


def test_what_is_intact_can_be_read_from_a_damaged_checkpoint() -> None:
    store = fresh("partly")
    save(OLD, store, "old")
    for entry in list(store.list("job/chunks/")):
        if entry.bytes_ == 512:
            store.put(entry.key, bytes(512))
    assert load({"step": 0}, store) == {"step": 1}

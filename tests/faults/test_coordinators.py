"""Two attempts that both have all parts of a snapshot, and both want to commit it.

An attempt looks whether a newer one was taken right before it creates its manifest. If so it is fenced. If the newer
one is taken in between, the older manifest lands: it is harmless, since it is complete (all its chunks were stored
first), is the state of its own step and attempt to the byte, and its log is that of its own lineage. Whoever recovers
next takes the highest step; either lineage alone is a valid history of the run.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from fgtrain.errors import Corrupt, StoreUnavailable
from fgtrain.runstore import RunStore
from fgtrain.snapshot.staged import Header
from fgtrain.snapshot.upload import Fenced, Uploader
from fgtrain.stores import Abilities, Store, open_store
from tests.testbed.faulty_store import Fault, FaultyStore, first_of
from tests.testbed.s3 import S3Server
from tests.testbed.shares import assert_right, contents, stage

WORLD = 2


class Watched(FaultyStore):
    """`inner`, with a word before each request that may wait."""

    def __init__(self, inner: Store, before: Callable[[str, str], None]) -> None:
        super().__init__(inner, lambda number, operation: None)
        self._before = before

    def _begin(self, operation: str, key: str) -> Fault | None:
        self._before(operation, key)
        return None


class Heedless:
    """A store whose vendor ignores the condition of a create."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.url = inner, inner.url
        self.put, self.get, self.head, self.delete = inner.put, inner.get, inner.head, inner.delete

    def create(self, key: str, data: bytes | memoryview) -> None:
        self.inner.put(key, data)

    def list(self, prefix: str = ""):  # type: ignore[no-untyped-def]
        return self.inner.list(prefix)

    def check(self) -> Abilities:
        return Abilities(conditional_create=False)


def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4()}")


class Attempt:
    """The uploaders of one attempt."""

    def __init__(self, store: Store, folder: Path, number: int) -> None:
        self.runs = RunStore(store, "r")
        self.number, self._folder = number, folder / str(number)
        self.ranks = [Uploader(self.runs, self._folder / str(r), number, r, None) for r in range(WORLD)]

    def store_shares(self, step: int) -> Header:
        headers = [stage(self._folder / str(r), "r", step, self.number, r, WORLD) for r in range(WORLD)]
        for rank, header in zip(self.ranks, headers, strict=True):
            rank.store_share(header)
        return headers[0]

    def commit(self, header: Header) -> bool:
        try:
            self.ranks[0].commit(header)
        except Fenced:
            return False
        return True


def assert_all_right(runs: RunStore) -> None:
    for name in runs.manifest_names():
        assert_right(runs, runs.manifest(name))


@pytest.mark.parametrize("seed", range(20))
def test_of_two_coordinators_the_newer_always_commits_and_no_parts_mix(tmp_path: Path, seed: int) -> None:
    store, random = memory(), Random(seed)
    turns = threading.Semaphore(1)

    def jostle(operation: str, key: str) -> None:
        with turns:
            threading.Event().wait(random.uniform(0, 0.002))  # other orders of requests for other seeds

    attempts = [Attempt(Watched(store, jostle), tmp_path, RunStore(store, "r").take_attempt(0, WORLD).attempt)]
    first = attempts[0].store_shares(20)
    attempts.append(Attempt(Watched(store, jostle), tmp_path, RunStore(store, "r").take_attempt(0, WORLD).attempt))
    second = attempts[1].store_shares(20)
    with ThreadPoolExecutor(2) as pool:
        committed = list(pool.map(lambda pair: pair[0].commit(pair[1]), zip(attempts, (first, second), strict=True)))
    assert committed == [False, True]
    runs = RunStore(store, "r")
    assert runs.manifest_names() == ["0000000020-00002"]
    assert_all_right(runs)


def test_older_coordinator_that_looked_before_it_was_replaced_commits_something_complete(tmp_path: Path) -> None:
    store = memory()
    newer: list[Attempt] = []

    def replace(operation: str, key: str) -> None:
        if operation == "create" and "manifests/" in key and not newer:
            newer.append(Attempt(store, tmp_path, RunStore(store, "r").take_attempt(0, WORLD).attempt))
            newer[0].store_shares(15)  # its commit is under way when the older one's lands, and cleans up

    RunStore(store, "r").take_attempt(0, WORLD)
    older = Attempt(Watched(store, replace), tmp_path, 1)
    assert older.commit(older.store_shares(20))
    header = stage(tmp_path / "2" / "0", "r", 15, 2, 0, WORLD)
    assert newer[0].commit(header)
    runs = RunStore(store, "r")
    assert runs.manifest_names() == ["0000000015-00002", "0000000020-00001"]
    assert_all_right(runs)
    assert not older.commit(older.store_shares(30))
    assert newer[0].commit(newer[0].store_shares(30))
    assert runs.manifest_names()[-1] == "0000000030-00002"
    assert_all_right(runs)


def test_part_lists_of_two_attempts_never_mix(tmp_path: Path) -> None:
    store = memory()
    runs = RunStore(store, "r")
    for _ in range(2):
        runs.take_attempt(0, WORLD)
    older, newer = Attempt(store, tmp_path, 1), Attempt(store, tmp_path, 2)
    older.store_shares(20)
    half = stage(tmp_path / "2" / "0", "r", 20, 2, 0, WORLD)
    newer.ranks[0].store_share(half)
    with pytest.raises(StoreUnavailable, match="1 of 2 ranks stored"):
        newer.ranks[0].commit(half, newer=lambda: True)
    assert runs.manifest_names() == []


def test_rank_that_gave_up_is_not_waited_for(tmp_path: Path) -> None:
    store = memory()
    RunStore(store, "r").take_attempt(0, WORLD)
    attempt = Attempt(store, tmp_path, 1)
    header = stage(tmp_path / "1" / "0", "r", 20, 1, 0, WORLD)
    attempt.ranks[0].store_share(header)
    attempt.ranks[1].give_up(20, "its disk is full")
    with pytest.raises(StoreUnavailable, match="rank 1: its disk is full"):
        attempt.ranks[0].commit(header)


def test_rank_that_has_gone_on_is_not_waited_for(tmp_path: Path) -> None:
    store = memory()
    RunStore(store, "r").take_attempt(0, WORLD)
    attempt = Attempt(store, tmp_path, 1)
    early = stage(tmp_path / "1" / "0", "r", 20, 1, 0, WORLD)
    attempt.ranks[0].store_share(early)
    late = attempt.store_shares(30)
    with pytest.raises(StoreUnavailable, match="1 of 2 .*; rank 1 has gone on without"):
        attempt.ranks[0].commit(early)
    assert attempt.commit(late)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST])
def test_commit_whose_answer_is_lost_counts_if_it_is_there(tmp_path: Path, fault: Fault) -> None:
    store = memory()
    RunStore(store, "r").take_attempt(0, WORLD)
    attempt = Attempt(FaultyStore(store, first_of("create", fault)), tmp_path, 1)
    header = attempt.store_shares(20)
    if fault is Fault.LOST:
        assert attempt.commit(header)
    else:
        with pytest.raises(StoreUnavailable):
            attempt.commit(header)
    assert RunStore(store, "r").manifest_names() == (["0000000020-00001"] if fault is Fault.LOST else [])


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: d[:80] + bytes([d[80] ^ 1]) + d[81:]])
def test_damaged_part_list_is_never_committed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = memory()
    runs = RunStore(store, "r")
    runs.take_attempt(0, WORLD)
    attempt = Attempt(store, tmp_path, 1)
    header = attempt.store_shares(20)
    for key in [e.key for e in store.list(runs.key("parts/"))]:
        whole = store.get(key)
        store.put(key, damage(whole))
        with pytest.raises(Corrupt, match="checksum"):
            attempt.commit(header)
        store.put(key, whole)
    assert runs.manifest_names() == []
    assert attempt.commit(header)


def test_unreadable_commit_of_this_attempt_does_not_end_its_snapshots(tmp_path: Path) -> None:
    store = memory()
    runs = RunStore(store, "r")
    runs.take_attempt(0, WORLD)
    attempt = Attempt(store, tmp_path, 1)
    assert attempt.commit(attempt.store_shares(20))
    store.put(runs.key("manifests/0000000020-00001"), b"rot")
    assert attempt.commit(attempt.store_shares(30))
    assert_right(runs, runs.manifest("0000000030-00001"))


# -- a vendor that ignores conditions -----------------------------------------------------------------------------


def test_attempts_are_told_apart_where_conditions_are_ignored() -> None:
    store = Heedless(memory())
    for _ in range(20):
        line = threading.Barrier(4)

        def take(_: int, line: threading.Barrier = line) -> int:
            line.wait(240)
            return RunStore(store, "r").take_attempt(0, 1).attempt

        with ThreadPoolExecutor(4) as pool:
            taken = list(pool.map(take, range(4)))
        assert len(set(taken)) == 4


def test_race_where_conditions_are_ignored_replaces_no_commit(tmp_path: Path) -> None:
    store = Heedless(memory())
    taken: list[int] = []

    def intrude(operation: str, key: str) -> None:
        if operation == "create" and not taken:  # both have seen that number 1 is free
            taken.append(RunStore(store, "r").take_attempt(0, WORLD).attempt)

    mine = RunStore(Watched(store, intrude), "r").take_attempt(0, WORLD).attempt
    assert mine != taken[0]
    attempts = [Attempt(store, tmp_path, n) for n in (mine, taken[0])]
    headers = [a.store_shares(20) for a in attempts]
    committed = [a.commit(h) for a, h in zip(attempts, headers, strict=True)]
    assert committed == [mine > taken[0], mine < taken[0]]
    assert_all_right(RunStore(store, "r"))


def test_real_vendor_that_ignores_conditions_tells_attempts_apart(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from launcher import prepare

    for name, value in rclone.env.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{rclone.bucket}/{uuid.uuid4()}")
    notes = prepare.try_store(store)
    assert any("ignores conditional writes" in note for note in notes)
    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(lambda _: RunStore(store, "r").take_attempt(0, WORLD).attempt, range(3)))
    assert len(set(taken)) == 3
    newest = Attempt(store, tmp_path, max(taken))
    assert newest.commit(newest.store_shares(20))
    assert not Attempt(store, tmp_path, min(taken)).commit(newest.store_shares(20))
    manifest = RunStore(store, "r").manifest(f"{20:010d}-{max(taken):05d}")
    assert_right(RunStore(store, "r"), manifest)


def test_contents_differ_between_attempts() -> None:
    assert contents("model", 20, 1) != contents("model", 20, 2)
    assert contents("frozen", 20, 1) == contents("frozen", 30, 2)

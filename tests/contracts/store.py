"""The contract of `fgtrain.stores.Store`: every store passes it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from fgtrain.errors import KeyExists, KeyMissing
from fgtrain.stores import Abilities, Entry, Store, copy, fetch, now

MIB = 1 << 20
RACERS = 16
PROCESSES = 3
# Creates every key of a race as soon as a line arrives, and prints those it won.
RACING_PROCESS = """
import sys
from fgtrain.errors import KeyExists
from fgtrain.stores import open_store
url, name, keys = sys.argv[1], sys.argv[2], sys.argv[3:]
store = open_store(url)
list(store.list("warm"))
print("ready", flush=True)
sys.stdin.readline()
for key in keys:
    try:
        store.create(key, name.encode())
    except KeyExists:
        continue
    print(key)
"""
BAD_KEYS = ["", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "a/../b", "../a", "a\0b", "a\nb", "a\ud800"]
ODD_KEYS = [
    "类别/白胸翡翠 ck-001.bin",
    "a b+c%20=&?.ckpt",
    "deep/er/and/deeper/x",
    "q?versionId=1",
    ".hidden/.x",
    "~",
    "glob[*]?",
    "'quo\"ted'<&>",
]


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


class StoreContract:
    """Subclasses give a `store` fixture: an empty store."""

    abilities = Abilities(conditional_create=True)
    races = 5

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def test_put_object_is_read_back(self, store: Store) -> None:
        store.put("runs/a/manifest.json", b"{}")
        assert store.get("runs/a/manifest.json") == b"{}"

    def test_put_replaces_whatever_was_there(self, store: Store) -> None:
        for data in (b"first", b"a longer second", b"3"):
            store.put("k", data)
            assert store.get("k") == data
            assert store.head("k").bytes_ == len(data)

    def test_empty_object_exists(self, store: Store) -> None:
        store.put("empty", b"")
        store.create("empty2", b"")
        assert store.get("empty") == b"" == store.get("empty", 0, 10)
        assert [(e.key, e.bytes_) for e in store.list()] == [("empty", 0), ("empty2", 0)]

    def test_20_mib_object_and_a_view_of_it(self, store: Store) -> None:
        data = Random(7).randbytes(20 * MIB)
        store.put("big", memoryview(data))
        assert store.get("big") == data
        assert store.get("big", 7 * MIB + 3, 7 * MIB + 1003) == data[7 * MIB + 3 : 7 * MIB + 1003]
        assert store.head("big").bytes_ == len(data)

    def test_object_is_fetched_to_where_it_is_wanted(self, store: Store) -> None:
        data = Random(8).randbytes(5 * MIB + 3)
        store.put("big", data)
        memory = bytearray(len(data) + 2)
        assert fetch(store, "big", memoryview(memory)[1:-1]) == len(data)
        assert memory == b"\0" + data + b"\0"

    def test_fetch_tells_the_size_of_what_does_not_fit(self, store: Store) -> None:
        store.put("k", b"0123456789")
        store.put("empty", b"")
        memory = bytearray(12)
        assert fetch(store, "k", memoryview(memory)[1:10]) == 10
        assert fetch(store, "k", memoryview(memory)[:11]) == 10
        assert memory[11] == 0
        assert fetch(store, "empty", memoryview(bytearray())) == 0
        with pytest.raises(KeyMissing, match="nothing"):
            fetch(store, "nothing", memoryview(memory))

    def test_views_are_written_as_their_bytes(self, store: Store) -> None:
        numbers = memoryview(bytes(range(16))).cast("I")
        store.put("k", numbers)
        store.create("c", memoryview(b"0123456789")[2:5])
        assert store.get("k") == bytes(range(16))
        assert store.get("c") == b"234"

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 4, b"0123"),
            (4, None, b"456789"),
            (8, 100, b"89"),
            (0, None, b"0123456789"),
            (9, 10, b"9"),
            (10, 20, b""),
            (50, None, b""),
            (4, 4, b""),
            (5, 2, b""),
        ],
    )
    def test_range_is_clamped(self, store: Store, start: int, end: int | None, expected: bytes) -> None:
        store.put("k", b"0123456789")
        assert store.get("k", start, end) == expected

    def test_negative_position_is_refused(self, store: Store) -> None:
        store.put("k", b"0123456789")
        with pytest.raises(ValueError, match="count from the start"):
            store.get("k", -3)
        with pytest.raises(ValueError, match="count from the start"):
            store.get("k", 0, -1)

    def test_missing_key_is_named(self, store: Store) -> None:
        store.put("there/a", b"x")
        for key in ("gone", "there", "there/a/b", "there/b"):
            for read in (store.get, store.head, lambda k: store.get(k, 2, 2), lambda k: store.get(k, 1, 5)):
                with pytest.raises(KeyMissing, match=key):
                    read(key)

    def test_head_gives_size_and_time(self, store: Store) -> None:
        before = time.time()
        store.put("k", b"12345")
        entry = store.head("k")
        assert (entry.key, entry.bytes_) == ("k", 5)
        assert before - 2 <= entry.modified <= time.time() + 2  # S3 gives whole seconds
        [listed] = store.list()
        assert (listed.key, listed.bytes_) == ("k", 5)
        assert abs(listed.modified - entry.modified) < 2

    def test_deleted_object_is_gone_and_deleting_again_is_no_error(self, store: Store) -> None:
        store.put("a/b/c", b"x")
        store.put("a/d", b"y")
        for key in ("a/b/c", "a/b/c", "never/was", "a"):
            store.delete(key)
        assert keys(store) == ["a/d"]
        store.put("a/b/c", b"z")
        assert store.get("a/b/c") == b"z"

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_key_is_kept_as_it_is(self, store: Store, key: str) -> None:
        store.create(key, key.encode())
        assert store.get(key) == key.encode()
        assert store.head(key).key == key
        assert keys(store) == keys(store, key) == keys(store, key[:1]) == [key]
        store.delete(key)
        assert keys(store) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_key_is_the_callers_mistake(self, store: Store, key: str) -> None:
        for use in (store.get, store.head, store.delete):
            with pytest.raises(ValueError):
                use(key)
        for write in (store.put, store.create):
            with pytest.raises(ValueError):
                write(key, b"x")

    def test_prefix_is_a_string_not_a_folder(self, store: Store) -> None:
        for key in ("a/b/1", "a/bc", "a/b-c/2", "a/c", "b", "ab"):
            store.put(key, b"")
        assert keys(store, "a/b") == ["a/b-c/2", "a/b/1", "a/bc"]
        assert keys(store, "a/") == ["a/b-c/2", "a/b/1", "a/bc", "a/c"]
        assert keys(store, "a/b/") == ["a/b/1"]
        assert keys(store, "a/bc") == ["a/bc"]
        assert keys(store, "a/bc/") == keys(store, "zzz") == keys(store, "b/") == []

    def test_listing_is_in_key_order(self, store: Store) -> None:
        names = ["a-b", "a.b/x", "a/b", "a/b.c/d", "a/b0", "a0", "aa", "B", "甲/1", "乙", "é"]
        for key in names:
            store.put(key, b"")
        assert keys(store) == sorted(names)

    def test_listing_sees_every_write_and_delete_at_once(self, store: Store) -> None:
        expected: set[str] = set()
        random = Random(1)
        for _ in range(40):
            key = f"l/{random.randrange(12):02d}"
            if key in expected:
                store.delete(key)
            else:
                store.put(key, b"x")
            expected ^= {key}
            assert keys(store, "l/") == sorted(expected)

    def test_listing_goes_on_beyond_a_thousand(self, store: Store) -> None:
        # `many/07-x` and `many/07/x` lie in different folders: pages must not skip or repeat at the seams.
        names = sorted(f"many/{i // 50:02d}{'-/'[i % 2]}{i:05d}" for i in range(1_050))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), names))
        assert keys(store, "many/") == names
        assert next(iter(store.list("many/"))).key == names[0]

    def test_create_refuses_a_taken_key(self, store: Store) -> None:
        store.create("token", b"mine")
        with pytest.raises(KeyExists, match="token"):
            store.create("token", b"yours")
        with pytest.raises(KeyExists):
            store.create("token", b"mine")
        assert store.get("token") == b"mine"
        store.delete("token")
        store.create("token", b"next")
        assert store.get("token") == b"next"

    def test_one_of_many_threads_wins_a_create(self, store: Store) -> None:
        for race in range(self.races):
            line = threading.Barrier(RACERS)

            def compete(name: int, key: str = f"race/{race}", line: threading.Barrier = line) -> int | None:
                line.wait(240)
                try:
                    store.create(key, b"%03d" % name * 1000)
                except KeyExists:
                    return None
                return name

            with ThreadPoolExecutor(RACERS) as pool:
                won = [name for name in pool.map(compete, range(RACERS)) if name is not None]
            assert len(won) == 1
            assert store.get(f"race/{race}") == b"%03d" % won[0] * 1000

    def test_reader_sees_one_whole_object_while_it_is_overwritten(self, store: Store) -> None:
        sizes = {value: 300_000 + value for value in range(256)}
        store.put("k", bytes([0]) * sizes[0])
        done = threading.Event()

        def write() -> None:
            for value in range(1, 30):
                store.put("k", bytes([value]) * sizes[value])
            done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not done.is_set() and not writing.done():
                data = store.get("k")
                assert len(set(data)) == 1
                assert len(data) == sizes[data[0]]
            writing.result()
        assert store.get("k")[0] == 29

    def test_writers_and_deleters_of_one_folder_do_not_trip_each_other(self, store: Store) -> None:
        def churn(name: int) -> None:
            for i in range(20):
                store.put(f"churn/{i % 2}/{name}", b"x")
                store.delete(f"churn/{i % 2}/{name}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(churn, range(4)))
        assert keys(store) == []

    def test_entries_are_plain_data(self, store: Store) -> None:
        store.put("k", b"x")
        [entry] = store.list()
        assert isinstance(entry, Entry)
        assert entry == Entry(*entry)

    def test_copy_is_an_object_of_its_own_written_now(self, store: Store) -> None:
        store.put("a/原 b", b"bytes")
        before = now(store)
        copy(store, "a/原 b", "c/d")
        copied = store.head("c/d")
        assert (copied.bytes_, store.get("c/d")) == (5, b"bytes")
        assert before <= copied.modified <= now(store)
        store.put("a/原 b", b"changed")
        assert store.get("c/d") == b"bytes"
        copy(store, "a/原 b", "c/d")
        copy(store, "a/原 b", "c/d")
        store.delete("a/原 b")
        assert keys(store) == ["c/d"]
        assert store.get("c/d") == b"changed"

    def test_copy_of_nothing_is_a_missing_key(self, store: Store) -> None:
        with pytest.raises(KeyMissing, match="gone"):
            copy(store, "gone", "target")
        assert keys(store) == []

    def test_store_tells_its_time_and_leaves_nothing(self, store: Store) -> None:
        store.put("before", b"")
        assert store.head("before").modified <= now(store)
        assert keys(store) == ["before"]

    def test_check_finds_the_abilities_and_leaves_nothing(self, store: Store) -> None:
        assert store.check() == self.abilities
        assert keys(store) == []


class SharedStoreContract(StoreContract):
    """And what holds between processes that open the same URL."""

    def test_one_of_many_processes_wins_a_create(self, store: Store) -> None:
        names = [f"race/{i}" for i in range(8)]
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACING_PROCESS, store.url, str(number), *names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            for number in range(PROCESSES)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [racer.communicate(timeout=240)[0].split() for racer in racers]
        assert sorted(key for winner in won for key in winner) == sorted(names)
        for number, winner in enumerate(won):
            assert {store.get(key) for key in winner} <= {str(number).encode()}

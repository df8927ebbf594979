"""A bounded folder: never over its limit, and what was read longest ago goes first."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.held import File, Held, evictions

FILES = st.lists(st.builds(File, st.text("abc", min_size=1), st.integers(0, 100), st.integers(0, 9)), max_size=30)


def held_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if not f.name.startswith("."))


def set_read(folder: Path, **times_s: int) -> None:
    for name, time_s in times_s.items():
        os.utime(folder / name, (time_s, time_s))


@given(FILES, st.integers(0, 1000))
def test_as_little_as_possible_goes_oldest_first(files: list[File], room: int) -> None:
    gone = evictions(files, room)
    left = sum(f.bytes_ for f in files) - sum(f.bytes_ for f in gone)
    assert left <= room
    assert not gone or left + gone[-1].bytes_ > room
    kept = [f.read_ns for f in files if f not in gone]
    assert not gone or not kept or max(f.read_ns for f in gone) <= min(kept)


def test_what_was_read_last_stays(tmp_path: Path) -> None:
    held = Held(tmp_path / "objects", 100)
    for name in "abcd":
        held.put(name, name.encode() * 25)
    set_read(tmp_path / "objects", a=4, b=1, c=2, d=3)
    assert held.get("b") == b"b" * 25  # read now
    held.put("e", b"e" * 25)
    assert [held.has(name) for name in "abcde"] == [True, True, False, False, True]
    assert held_bytes(tmp_path / "objects") <= 100


def test_the_limit_holds_for_many_writers_and_after_a_lost_ledger(tmp_path: Path) -> None:
    several = [Held(tmp_path, 1000) for _ in range(3)]
    for number in range(100):
        several[number % 3].put(f"{number:03d}", bytes(90))
        assert held_bytes(tmp_path) <= 1000
        if number == 50:
            (tmp_path / ".ledger").unlink()
    assert held_bytes(tmp_path) >= 700


def test_the_limit_holds_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, replace = threading.Barrier(8), Path.replace

    def together(part: Path, path: Path) -> Path:
        writing.wait(240)  # all have their room, none has its name
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", together)
    for group in range(3):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n, group=group: Held(tmp_path, 1000).put(f"{group}{n}", bytes(90)), range(8)))
        assert held_bytes(tmp_path) <= 1000
    assert held_bytes(tmp_path) >= 700


def test_what_is_in_the_making_has_its_room(tmp_path: Path) -> None:
    held = Held(tmp_path, 100)
    (tmp_path / ".a.1.1").write_bytes(bytes(80))  # another's, who is not done
    held.put("b", bytes(30))
    assert not held.has("b")
    held.put("c", bytes(20))
    assert held.has("c")
    (tmp_path / ".a.1.1").rename(tmp_path / "a")
    held.put("b", bytes(30))
    assert held.has("b")
    assert held_bytes(tmp_path) <= 100


def test_what_is_dropped_makes_room_for_others(tmp_path: Path) -> None:
    Held(tmp_path / "none", 100).drop(["a"])
    assert not (tmp_path / "none").exists()
    held = Held(tmp_path, 100)
    for name in "abc":
        held.put(name, bytes(30))
    assert [held.bytes_of(name) for name in "cd"] == [30, 0]
    held.drop(["a", "c", "d", "a"])
    for name in "de":
        held.put(name, bytes(30))  # as far as the limit, with b
    assert [held.has(name) for name in "abcde"] == [False, True, False, True, True]


def test_what_is_too_large_or_cannot_be_written_is_not_held(tmp_path: Path) -> None:
    held = Held(tmp_path, 10)
    held.put("large", bytes(11))
    assert held.get("large") is None
    (tmp_path / "file").write_text("")
    Held(tmp_path / "file", 10).put("x", b"x")
    assert Held(tmp_path / "file", 10).get("x") is None


def test_what_a_dead_writer_left_goes_after_a_while(tmp_path: Path) -> None:
    (tmp_path / ".old.1.1").write_bytes(bytes(5))
    (tmp_path / ".new.1.1").write_bytes(bytes(5))
    os.utime(tmp_path / ".old.1.1", (1, 1))
    Held(tmp_path, 10).put("x", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ledger", ".new.1.1", "x"]

"""Shared memory with huge pages under it is the same memory; where there are none, it is as good without."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.snapshot.common import Common, Scratch
from fgtrain.snapshot.hugepages import HUGE, SharedMemory, rounded

torch = pytest.importorskip("torch")


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def shared(file: int, bytes_: int) -> SharedMemory:
    os.ftruncate(file, rounded(bytes_))
    return SharedMemory(file, bytes_)


@given(bytes_=st.integers(1, 3 * HUGE))
def test_file_ends_at_a_huge_page_and_holds_all(bytes_: int) -> None:
    assert rounded(bytes_) % HUGE == 0
    assert bytes_ <= rounded(bytes_) < bytes_ + HUGE


@pytest.mark.parametrize("bytes_", [1, 4097, HUGE, 2 * HUGE + 5])
def test_two_who_map_it_see_the_same(file: int, bytes_: int) -> None:
    one, other = shared(file, bytes_), SharedMemory(file, bytes_)
    assert len(one.view) == len(other.view) == bytes_
    one.view[bytes_ - 1] = 7
    assert other.view[bytes_ - 1] == 7


def test_contents_stay_whether_or_not_pages_become_huge(file: int) -> None:
    one = shared(file, 3 * HUGE)
    content = os.urandom(3 * HUGE)
    one.view[:] = content
    one.make_huge(5, HUGE + 9)
    other = SharedMemory(file, 3 * HUGE)
    other.make_huge(0, 3 * HUGE)
    assert bytes(one.view) == bytes(other.view) == content


def test_memory_stays_as_long_as_somebody_looks_and_no_longer(file: int) -> None:
    view = shared(file, HUGE).view
    tensor = torch.frombuffer(view, dtype=torch.uint8)
    del view
    gc.collect()
    tensor[3] = 9
    assert int(tensor[3]) == 9
    assert _maps_of(file) == 1
    del tensor
    gc.collect()
    assert _maps_of(file) == 0


def test_pages_said_to_be_huge_are(file: int) -> None:
    one = shared(file, 2 * HUGE)
    if not one.make_huge(0, 2 * HUGE):
        pytest.skip("this kernel gives no huge pages for shared memory")
    assert _huge_bytes_of(file) == 2 * HUGE


class Refusing(SharedMemory):
    """As on a kernel without."""

    def make_huge(self, start: int, stop: int) -> bool:
        return False


@pytest.mark.parametrize("kind", [SharedMemory, Refusing])
def test_what_is_fetched_lies_in_its_place(file: int, kind: type[SharedMemory]) -> None:
    os.ftruncate(file, 2 * HUGE)
    memory = kind(os.dup(file), 2 * HUGE)
    common = Common(torch.frombuffer(memory.view, dtype=torch.uint8), [0, 0], memory)
    scratch = Scratch()
    for at, bytes_ in ((0, 100), (100, HUGE), (HUGE + 100, HUGE - 100)):

        def fetch(into: memoryview, bytes_: int = bytes_) -> None:
            assert len(into) == bytes_
            into[:] = bytes([bytes_ % 251]) * bytes_

        common.place(at, bytes_, fetch, scratch)
    common.close()
    expected = b"".join(bytes([n % 251]) * n for n in (100, HUGE, HUGE - 100))
    assert bytes(SharedMemory(file, 2 * HUGE).view) == expected


def test_file_that_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "read-only"
    path.write_bytes(b"x" * HUGE)
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="cannot map"):
        SharedMemory(fd, HUGE)
    os.close(fd)


def _maps_of(file: int) -> int:
    inode = os.fstat(file).st_ino
    return sum(f" {inode} " in line for line in Path("/proc/self/maps").read_text().splitlines())


def _huge_bytes_of(file: int) -> int:
    inode, found, here = os.fstat(file).st_ino, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = f" {inode} " in line
        elif here and line.startswith("ShmemPmdMapped:"):
            found += int(line.split()[1]) * 1024
    return found

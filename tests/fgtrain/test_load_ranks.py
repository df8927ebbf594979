"""Restoring on several ranks: every byte is read once by the job, and every rank has all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fgtrain.errors import Corrupt, FglaunchError
from fgtrain.place import Place
from fgtrain.runstore import RunStore
from fgtrain.snapshot.load import newest
from fgtrain.snapshot.save import Saver
from fgtrain.stores import open_store
from fgtrain.stores.file import FileStore
from tests.testbed.ranks import on_ranks

pytestmark = pytest.mark.train


class Counting(FileStore):
    """Counts the reads of each key."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def fetch(self, key: str, into: memoryview) -> int:
        self.reads[key] += 1
        return super().fetch(key, into)


def state() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    many = {f"m{i}": torch.rand(200_000 + i, generator=generator) for i in range(8)}
    return {"model": many, "optim": {"steps": torch.tensor(7.0), "halves": torch.rand(33, generator=generator).half()}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = RunStore(open_store(f"{tmp_path}/store"), "r")
    runs.take_attempt(0, 1)
    memory = [tmp_path / "memory" / "00001-00000"]
    place = Place(0, 1, 0, torch.device("cpu"))
    saver = Saver(runs, place, 1, memory, slots=2, copies=False, determinism="samples", last=None, verified=True)
    try:
        saver.begin(1, state(), set(), {}, {}, persist=True)
        saver.drain()
        saver.settle(1, 240)
    finally:
        saver.close()
    return tmp_path


def read(rank: int, folder: Path, nodes: Sequence[int]) -> tuple[bool, dict[str, int], str]:
    """Restore as a rank of a node; returns whether all is right, what this rank read, and what went wrong."""
    store = Counting(folder / "store")
    place = Place(rank, len(nodes), 0, torch.device("cpu"), nodes[rank])
    try:
        restored = newest(RunStore(store, "r"), place, [], lambda text: None)
    except FglaunchError as error:
        return False, dict(store.reads), type(error).__name__
    assert restored
    wanted = {name: t for some in state().values() for name, t in some.items()}
    right = all(torch.equal(restored.tensors[name], t) for name, t in wanted.items())
    return right and restored.tensors.keys() == wanted.keys(), dict(store.reads), ""


@pytest.mark.parametrize("nodes", [(0, 0, 0), (0, 1), (0, 0, 1), (4, 2, 2)])
def test_every_byte_is_read_once_and_is_everywhere(folder: Path, nodes: tuple[int, ...]) -> None:
    found: list[Any] = on_ranks(len(nodes), read, folder, nodes)
    assert [(right, problem) for right, _, problem in found] == [(True, "")] * len(nodes)
    reads = sum((Counter(r) for _, r, _ in found), Counter[str]())
    assert set(reads) == {f"chunks/{p.parent.name}/{p.name}" for p in (folder / "store" / "chunks").glob("*/*")}
    assert set(reads.values()) == {1}
    assert all(r for _, r, _ in found)


def test_bad_chunk_is_found_on_all_ranks(folder: Path) -> None:
    chunk = max((folder / "store" / "chunks").glob("*/*"), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    found: list[Any] = on_ranks(2, read, folder, (0, 0))
    assert [problem for _, _, problem in found] == [Corrupt.__name__] * 2

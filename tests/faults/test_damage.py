"""A flipped bit and a truncation in everything that recovery reads: found, told, and the next older state taken."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fgtrain.errors import Corrupt
from fgtrain.manifest import Manifest, chunk_key
from fgtrain.place import Place
from fgtrain.runstore import RunStore
from fgtrain.snapshot.load import Restored, newest
from fgtrain.snapshot.memory import rank_folder
from fgtrain.snapshot.upload import Uploader
from fgtrain.stores import open_store
from tests.testbed.shares import SPANS, contents, stage

ALONE = Place(0, 1, 0, torch.device("cpu"))
WORLD = 2  # of the run that left what is read here
Damage = Callable[[bytes], bytes]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGES = [
    pytest.param(flip, id="a bit in the middle"),
    pytest.param(lambda d: bytes([d[0] ^ 1]) + d[1:], id="the first bit"),
    pytest.param(lambda d: d[:-1] + bytes([d[-1] ^ 128]), id="the last bit"),
    pytest.param(lambda d: d[:-1], id="a byte short"),
    pytest.param(lambda d: b"", id="empty"),
]


class Left:
    """What a run of two ranks left: commits of steps 10 and 20, and shares of 22 and 24 in memory."""

    def __init__(self, folder: Path) -> None:
        self.runs = RunStore(open_store(f"memory://{uuid.uuid4()}"), "r")
        self.runs.take_attempt(0, WORLD)
        self.memory = folder
        self.notes: list[str] = []
        last: Manifest | None = None
        ranks = [Uploader(self.runs, rank_folder(folder, 1, r), 1, r, None) for r in range(WORLD)]
        for step in (10, 20, 22, 24):
            base = last.name if last else None
            headers = [stage(rank_folder(folder, 1, r), "r", step, 1, r, WORLD, base) for r in range(WORLD)]
            if step > 20:
                continue
            for rank, header in zip(ranks, headers, strict=True):
                rank.store_share(header)
            last = ranks[0].commit(headers[0])

    def restore(self) -> Restored | None:
        return newest(self.runs, ALONE, [self.memory], self.notes.append)

    def assert_restores(self, step: int, tier: str, *, notes: int) -> None:
        restored = self.restore()
        assert restored
        assert (restored.step, restored.tier) == (step, tier), self.notes
        assert restored.values == {"step": step}
        for name, span in SPANS.items():
            assert bytes(restored.tensors[name].numpy()) == contents(span.group, step, 1)
        assert len(self.notes) == notes, self.notes

    def forget_memory(self) -> None:
        for file in self.memory.glob("*/*"):
            file.unlink()

    def damage_object(self, key: str, damage: Damage) -> Callable[[], None]:
        whole = self.runs.store.get(key)
        self.runs.store.put(key, damage(whole))
        return lambda: self.runs.store.put(key, whole)


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path / "memory")


def own_chunks(runs: RunStore, name: str, other: str) -> list[str]:
    """Return the chunks of a manifest's state that another does not share."""
    mine, theirs = runs.manifest(name), runs.manifest(other).chunks()
    return [c for g in mine.groups.values() for c in g.chunks if c not in theirs]


def test_undamaged_memory_is_nearest(left: Left) -> None:
    left.assert_restores(24, "memory", notes=0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk_or_manifest_means_the_older_snapshot(left: Left, damage: Damage) -> None:
    left.forget_memory()
    newer, older = "0000000020-00001", "0000000010-00001"
    objects = [chunk_key(c) for c in own_chunks(left.runs, newer, older)]
    assert len(objects) == 4
    for key in [*objects, left.runs.key(f"manifests/{newer}")]:
        mend = left.damage_object(key, damage)
        left.notes.clear()
        left.assert_restores(10, "store", notes=1)
        assert newer in left.notes[0]
        mend()
    left.notes.clear()
    left.assert_restores(20, "store", notes=0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_snapshot_that_verifies_is_an_error_and_not_a_new_start(left: Left, damage: Damage) -> None:
    left.forget_memory()
    shared = left.runs.manifest("0000000020-00001").groups["frozen"].chunks[0]
    left.damage_object(chunk_key(shared), damage)
    with pytest.raises(Corrupt, match="none of the 2 snapshots of r verifies"):
        left.restore()
    assert len(left.notes) == 2


def test_missing_chunk_is_as_bad_as_a_damaged_one(left: Left) -> None:
    left.forget_memory()
    for chunk in own_chunks(left.runs, "0000000020-00001", "0000000010-00001"):
        left.runs.store.delete(chunk_key(chunk))
    left.assert_restores(10, "store", notes=1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["bytes", "json"])
@pytest.mark.parametrize("rank", range(WORLD))
def test_damaged_share_in_memory_means_the_older_one(left: Left, damage: Damage, kind: str, rank: int) -> None:
    for step, then in ((24, 22), (22, 20)):
        file = rank_folder(left.memory, 1, rank) / f"slot{step}.{kind}"
        file.write_bytes(damage(file.read_bytes()))
        left.notes.clear()
        left.assert_restores(then, "memory", notes=1 if step == 24 else 2)


def test_every_bit_of_a_header_counts(left: Left) -> None:
    file = rank_folder(left.memory, 1, 0) / "slot24.json"
    whole = file.read_bytes()
    for i in range(0, len(whole), 7):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :])
        restored = left.restore()
        assert restored
        assert restored.step == 22
    file.write_bytes(whole)
    left.notes.clear()
    left.assert_restores(24, "memory", notes=0)


def test_damaged_commit_is_passed_over_for_an_older_state_in_memory(tmp_path: Path) -> None:
    left = Left(tmp_path / "memory")
    for step in (20, 22, 24):
        for rank in range(WORLD):
            (rank_folder(left.memory, 1, rank) / f"slot{step}.json").unlink()
            stage(rank_folder(left.memory, 1, rank), "r", 18, 1, rank, WORLD, "0000000010-00001")
    left.damage_object(left.runs.key("manifests/0000000020-00001"), flip)
    left.assert_restores(18, "memory", notes=1)


def test_state_in_memory_whose_base_is_gone_is_passed_over(left: Left) -> None:
    left.runs.store.delete(left.runs.key("manifests/0000000020-00001"))
    left.assert_restores(20, "memory", notes=2)


def test_log_lines_start_after_the_newest_commit_that_any_rank_has_heard_of(left: Left) -> None:
    folder = rank_folder(left.memory, 1, 0)
    stage(folder, "r", 24, 1, 0, WORLD, "0000000010-00001")  # rank 0 has not heard of 20 yet, rank 1 has
    restored = left.restore()
    assert restored
    assert restored.base
    assert restored.base.step == 20
    assert [step for step, _ in restored.lines["samples"]] == [24, 24]

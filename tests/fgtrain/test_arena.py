"""Slots: what is kept, what is in use, and where the memory comes from."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from fgtrain.errors import StoreUnavailable
from fgtrain.snapshot.arena import Arena
from fgtrain.snapshot.staged import Header, headers
from tests.testbed.small_disk import small_disk

MIB = 1 << 20


def header(step: int) -> Header:
    return Header(
        run="r",
        attempt=1,
        step=step,
        rank=0,
        world=1,
        base=None,
        determinism="samples",
        chunk_bytes=1,
        group_bytes={},
        spans={},
        values={},
        stretches=(),
        lines={},
        crc32={},
    )


def arena(*folders: Path, slots: int = 4) -> tuple[Arena, list[str]]:
    notes: list[str] = []
    return Arena(folders, slots, notes.append, pinned=False), notes


@pytest.mark.parametrize("slots", [2, 3, 4, 6])
def test_newest_complete_slots_and_those_in_flight_are_never_given_away(tmp_path: Path, slots: int) -> None:
    mine, _ = arena(tmp_path, slots=slots)
    mine.reserve(100, 0)
    random, complete, last = Random(slots), list[str](), -1
    for step in range(300):
        promised = mine.free()
        if promised is None:
            mine.uploading.discard(random.choice(sorted(mine.uploading)))
            continue
        kept = complete[-2:] if slots > 2 else complete[-1:]
        assert promised not in {*kept, *mine.uploading}
        if promised in complete:
            complete.remove(promised)
        mine.fill(promised)
        while_filling = mine.free()
        if random.random() < 0.5:
            mine.uploading.add(promised)
            while_filling = mine.free()
        mine.filled(promised, header(step))
        complete.append(promised)
        last = step
        assert mine.free() == while_filling  # an answer given during a copy still holds after it
    assert last in {h.step for _, h in headers(tmp_path) if isinstance(h, Header)}


def test_void_slot_has_no_header(tmp_path: Path) -> None:
    mine, _ = arena(tmp_path)
    mine.reserve(100, 0)
    mine.fill("slot0")
    mine.filled("slot0", header(1))
    mine.fill("slot0")
    assert list(headers(tmp_path)) == []


def test_folder_without_room_is_left_for_the_next_as_it_was_found(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", MIB) as disk:
        mine, notes = arena(disk.folder / "mine", tmp_path / "large")
        mine.reserve(MIB, MIB // 2)
        assert mine.folder == tmp_path / "large"
        assert len(notes) == 1
        assert "cannot hold 4,718,592 bytes of snapshots: No space left on device" in notes[0]
        assert not (disk.folder / "mine").exists()
        mine.view("slot3")[MIB - 1] = 7
        assert mine.view("frozen").numel() == MIB // 2


def test_state_that_outgrows_its_folder_takes_its_kept_slots_along_only_when_there_are_new_ones(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", MIB) as disk:
        mine, _ = arena(disk.folder / "mine", tmp_path / "large")
        mine.reserve(MIB // 8, 0)
        for step, slot in enumerate(["slot0", "slot1"]):
            mine.fill(slot)
            mine.filled(slot, header(step))
        mine.uploading.add("slot1")
        with pytest.raises(StoreUnavailable, match="cannot hold"):  # an uploader reads from there
            mine.reserve(MIB, 0)
        mine.uploading.clear()
        mine.reserve(MIB, 0)
        assert len(list(headers(disk.folder / "mine"))) == 2
        for step, slot in enumerate(["slot0", "slot1"]):
            assert (disk.folder / "mine").exists()
            mine.fill(slot)
            mine.filled(slot, header(10 + step))
        assert not (disk.folder / "mine").exists()


def test_no_folder_with_room_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", MIB) as disk:
        mine, notes = arena(disk.folder / "mine")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="cannot hold"):
                mine.reserve(MIB, 0)
        assert notes == []
        disk.resize(8 * MIB)
        mine.reserve(MIB, 0)

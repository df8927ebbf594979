"""Slots are reused, but never under somebody who still looks at one; micro-batches without a slot arrive as well."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.loader import MicroBatch, Parcel, training_batches
from fgtrain.plan import Plan, make_plan
from fgtrain.recipe import Loader, Recipe
from fgtrain.slots import Slots
from tests.fgtrain.recipes import recipe

SHAPE = (2, 3)


@given(st.data())
def test_what_somebody_looks_at_is_not_handed_out_again(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    slots = Slots(count, SHAPE)
    seen: dict[int, torch.Tensor] = {}  # by number of the taking: a view of what was put there
    for taking in range(data.draw(st.integers(1, 30))):
        for gone in data.draw(st.sets(st.sampled_from(sorted(seen)))) if seen else ():
            del seen[gone]
        slot = slots.take()
        assert (slot is None) == (len(seen) == count)
        if slot is not None:
            slots.room(slot)[:] = taking
            seen[taking] = look(slots.filled(slot), data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2)))
        assert [n for n in seen if not (seen[n] == n).all()] == []


def look(filled: npt.NDArray[np.uint8], rows: int, way: int) -> torch.Tensor:
    """Return a tensor of some rows, or a view of that tensor."""
    tensor = torch.from_numpy(filled[:rows])
    return [tensor, tensor[:1], tensor.reshape(-1)][way]


def test_a_fork_fills_what_the_rank_reads() -> None:
    slots = Slots(2, SHAPE)
    slot = slots.take()
    assert slot is not None
    child = os.fork()
    if child == 0:
        slots.room(slot)[:] = 7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (slots.filled(slot) == 7).all()


@pytest.mark.parametrize("in_slot", [True, False])
def test_a_parcel_arrives_as_the_micro_batch_it_holds(in_slot: bool) -> None:
    slots = Slots(1, (4, 2, 2, 3))
    room = torch.from_numpy(slots.room(0)) if in_slot else torch.empty(4, 2, 2, 3, dtype=torch.uint8)
    room.copy_(torch.arange(48, dtype=torch.uint8).view(4, 2, 2, 3))
    sent = MicroBatch(room[:3], np.array([5, 6, 7]), [(0, 1), (0, 2), (0, 3)], [])
    came = pickle.loads(pickle.dumps(Parcel(sent, slots.key, 0) if in_slot else Parcel(sent)))
    assert isinstance(came, MicroBatch)
    assert torch.equal(came.images, sent.images)
    assert came.labels.tolist() == [5, 6, 7]
    assert (came.ids, came.bad) == (sent.ids, [])
    assert (came.images.data_ptr() == room.data_ptr()) == in_slot


def batches(small: Recipe, plan: Plan) -> Iterator[MicroBatch]:
    return training_batches(small, plan, small.data.index().train, start=0, rank=0, size=1, gpu=False)


@pytest.fixture
def small() -> Recipe:
    return recipe(loader=Loader(workers=2, prefetch=2))


@pytest.mark.train
def test_whoever_holds_more_micro_batches_than_there_are_slots_gets_the_right_ones(small: Recipe) -> None:
    plan = make_plan(small, len(small.data.index().train))
    alone = batches(recipe(loader=Loader(workers=0)), plan)
    for batch, expected in [(batch, next(alone)) for batch in islice(batches(small, plan), 20)]:
        assert torch.equal(batch.images, expected.images)
        assert batch.ids == expected.ids


@pytest.mark.train
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_loaders_leave_nothing_in_the_temporary_folder_however_a_rank_ends(
    small: Recipe, sig: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(small, len(small.data.index().train))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    read, write = os.pipe()
    rank = os.fork()
    if rank == 0:
        loading = batches(small, plan)
        held = [next(loading) for _ in range(20)]
        os.write(write, bytes([len(held)]))
        signal.pause()
    os.close(write)
    assert os.read(read, 1) == b"\x14"
    loaders = psutil.Process(rank).children(recursive=True)
    os.kill(rank, sig)
    os.waitpid(rank, 0)
    os.close(read)
    assert len(loaders) == 2
    assert psutil.wait_procs(loaders, timeout=240)[1] == []  # they die with their rank
    assert list(tmp_path.iterdir()) == []

"""A saver and its uploader process, one rank at a time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from fgtrain.manifest import Manifest
from fgtrain.place import Place
from fgtrain.runstore import RunStore
from fgtrain.sealed import unseal
from fgtrain.snapshot import staged
from fgtrain.snapshot.layout import Layout, flat_bytes
from fgtrain.snapshot.load import newest
from fgtrain.snapshot.save import Saver
from fgtrain.snapshot.upload import PartList
from fgtrain.stores import open_store
from tests.testbed.runs import wait_for

CHUNK = 256 << 10
Tensors = dict[str, dict[str, torch.Tensor]]


def saver_of(folder: Path, rank: int, world: int) -> tuple[RunStore, Saver]:
    runs = RunStore(open_store(f"{folder}/store"), "r")
    if not runs.attempts():
        runs.take_attempt(0, world)
    place = Place(rank, world, rank, torch.device("cpu"))
    mine = [folder / "memory" / f"00001-{rank:05d}"]
    return runs, Saver(runs, place, 1, mine, slots=4, copies=False, determinism="samples", last=None, verified=True)


def bytes_of(tensors: Tensors, layout: Layout, group: str) -> bytes:
    whole = torch.zeros(layout.group_bytes[group], dtype=torch.uint8)
    for name, t in tensors[group].items():
        span = layout.spans[name]
        whole[span.offset : span.offset + span.bytes_] = flat_bytes(t)
    return bytes(whole.numpy())


def growing() -> tuple[Tensors, Tensors]:
    """A state, and the same after it has grown past the size at which chunks become twice as long."""
    generator = torch.Generator().manual_seed(1)

    def bytes_(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)

    small = {"frozen": {"f": bytes_(13 * CHUNK + 5)}, "model": {"m": bytes_(40 * CHUNK)}}
    return small, small | {"optim": {"o": bytes_(30 * CHUNK)}}


def test_frozen_share_follows_when_the_state_grows(tmp_path: Path) -> None:
    rank = 1  # its share of what is frozen begins elsewhere when chunks are longer
    small, large = growing()
    assert Layout(large).chunk_bytes == 2 * Layout(small).chunk_bytes
    runs, saver = saver_of(tmp_path, rank, 2)
    try:
        for step, state in ((1, small), (2, large)):
            saver.begin(step, state, set(), {}, {}, persist=True)
            saver.drain()
            key = f"runs/r/parts/{step:010d}-00001/{rank:05d}.json"
            wait_for(lambda key=key: runs.exists(key.removeprefix("runs/r/")), f"the part list of step {step}")
            layout = Layout(state)
            [header] = [h for _, h in staged.headers(tmp_path / "memory" / f"00001-{rank:05d}") if h.step == step]
            part = msgspec.json.decode(unseal(runs.store.get(key), key), type=PartList)
            for s in header.stretches:
                wanted = bytes_of(state, layout, s.group)[s.start : s.stop]
                data = staged.verified_bytes(tmp_path / "memory" / f"00001-{rank:05d}", header, s.file)
                assert data[s.offset : s.offset + s.stop - s.start] == wanted
                assert b"".join(runs.get_chunk(c) for _, c in sorted(part.chunks[s.group])) == wanted
                assert [n for n, _ in sorted(part.chunks[s.group])][0] == s.start // layout.chunk_bytes
    finally:
        saver.close()


def test_commit_of_a_lone_rank_is_read_back(tmp_path: Path) -> None:
    small, _ = growing()
    runs, saver = saver_of(tmp_path, 0, 1)
    try:
        saver.begin(1, small, set(), {"a": 1}, {"samples": [(1, "{}")]}, persist=True)
        saver.drain()
        saver.settle(1, 240)
        assert [r.step for r in saver.poll()] == [1]
    finally:
        saver.close()
    manifest = runs.manifest("0000000001-00001")
    assert isinstance(manifest, Manifest)
    restored = newest(runs, Place(0, 1, 0, torch.device("cpu")), [], lambda text: None)
    assert restored
    assert torch.equal(restored.tensors["f"], small["frozen"]["f"])
    assert torch.equal(restored.tensors["m"], small["model"]["m"])
    assert runs.log_lines(manifest, "samples") == b"{}\n"


def test_each_snapshot_holds_what_the_tensors_hold_then(tmp_path: Path) -> None:
    """What is where is worked out once; a tensor with gaps, and one that is replaced, must not go stale by that."""
    gaps = torch.arange(24.0).reshape(4, 6)[:, :5]
    tensors: Tensors = {"model": {"dense": torch.arange(8.0), "gaps": gaps, "moved": torch.zeros(3)}}
    runs, saver = saver_of(tmp_path, 0, 1)
    try:
        for step in range(1, 16):
            saver.make_room(240)
            saver.begin(step, tensors, set(), {}, {}, persist=True)
            saver.drain()
            saver.settle(step, 240)
            restored = newest(runs, Place(0, 1, 0, torch.device("cpu")), [], lambda text: None)
            assert restored
            for name, t in tensors["model"].items():
                assert torch.equal(restored.tensors[name], t), (step, name)
            for t in tensors["model"].values():
                t += step
            if step == 12:
                tensors["model"]["moved"] = tensors["model"]["moved"] * 2
    finally:
        saver.close()

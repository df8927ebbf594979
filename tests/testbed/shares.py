"""Staged shares made of plain bytes that are known for every step and attempt. Without torch."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

from fgtrain.manifest import Manifest, TensorSpan, chunk_count
from fgtrain.runstore import RunStore
from fgtrain.snapshot.staged import Header, Stretch, write_header

CHUNK_BYTES = 64
SIZES = {"frozen": 5 * CHUNK_BYTES, "model": 7 * CHUNK_BYTES + 13}
SPANS = {
    "model/backbone": TensorSpan("uint8", (SIZES["frozen"],), "frozen", 0, SIZES["frozen"]),
    "model/w": TensorSpan("uint8", (SIZES["model"],), "model", 0, SIZES["model"]),
}


def contents(group: str, step: int, attempt: int) -> bytes:
    """Return a group's bytes: the frozen ones never change, every second chunk of the others does."""
    chunks = []
    for i in range(chunk_count(SIZES[group], CHUNK_BYTES)):
        of = (group, i) if group == "frozen" or i % 2 else (group, i, step, attempt)
        chunks.append(hashlib.sha512(repr(of).encode()).digest())
    return b"".join(chunks)[: SIZES[group]]


def stage(folder: Path, run: str, step: int, attempt: int, rank: int, world: int, base: str | None = None) -> Header:
    """Stage one rank's share as a saver does; returns its header."""
    folder.mkdir(parents=True, exist_ok=True)
    slot = f"slot{step}"
    stretches, data = [], b""
    for group, bytes_ in SIZES.items():
        count = chunk_count(bytes_, CHUNK_BYTES)
        start, stop = count * rank // world * CHUNK_BYTES, min(count * (rank + 1) // world * CHUNK_BYTES, bytes_)
        if start < stop:
            stretches.append(Stretch(group, start, stop, f"{slot}.bytes", len(data)))
            data += contents(group, step, attempt)[start:stop]
    (folder / f"{slot}.bytes").write_bytes(data)
    header = Header(
        run=run,
        attempt=attempt,
        step=step,
        rank=rank,
        world=world,
        base=base,
        determinism="samples",
        chunk_bytes=CHUNK_BYTES,
        group_bytes=SIZES,
        spans=SPANS if rank == 0 else {},
        values={"step": step},
        stretches=tuple(stretches),
        lines={"samples": [(step, f'{{"step": {step}, "rank": {rank}}}')]},
        crc32={f"{slot}.bytes": zlib.crc32(data)},
    )
    write_header(folder, slot, header)
    return header


def restored(runs: RunStore, manifest: Manifest) -> dict[str, bytes]:
    """Read and verify all groups of a manifest.

    Raises:
        Corrupt
    """
    return {name: b"".join(runs.get_chunk(c) for c in group.chunks) for name, group in manifest.groups.items()}


def assert_right(runs: RunStore, manifest: Manifest) -> None:
    """Check that a manifest holds exactly the state of its step and attempt, and its log lines."""
    assert restored(runs, manifest) == {g: contents(g, manifest.step, manifest.attempt) for g in SIZES}
    assert manifest.values == {"step": manifest.step}
    runs.log_lines(manifest, "samples")

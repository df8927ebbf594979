"""Items cut into blocks, blocks packed into chunks; and which blocks a box of a stored tensor needs.

A chunk is one object of the store. A block is the least that can be read and verified: a small item, or a chunk-sized
piece of a large one. So a large tensor is read in pieces, and a small one without its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

CHUNK_BYTES = 8 << 20
# An item of this size or more has chunks of its own: what lies before it can change and it is still shared.
PACK_BELOW = 1 << 20


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [start, start + bytes_) of the chunk `chunk`; `digest` is their own SHA-256."""

    chunk: str
    start: int
    bytes_: int
    digest: str


class Part(NamedTuple):
    """Piece `number` of item `item` lies at [start, start + bytes_) of a chunk."""

    item: int
    number: int
    start: int
    bytes_: int


class Chunk(NamedTuple):
    """Contents to be stored as one object."""

    data: bytes | memoryview
    parts: tuple[Part, ...]


def chunks_of(items: Iterable[memoryview]) -> Iterator[Chunk]:
    """Cut and pack the bytes of items, in order; holds one pack of small items at a time. Empty items have no part."""
    small: list[memoryview] = []
    parts: list[Part] = []
    size = 0
    for number, data in enumerate(items):
        if len(data) >= PACK_BELOW:
            yield from _cut(number, data)
        elif len(data):
            if size + len(data) > CHUNK_BYTES:
                yield Chunk(b"".join(small), tuple(parts))
                small, parts, size = [], [], 0
            small.append(data)
            parts.append(Part(number, 0, size, len(data)))
            size += len(data)
    if parts:
        yield Chunk(b"".join(small), tuple(parts))


def _cut(item: int, data: memoryview) -> Iterator[Chunk]:
    for number, start in enumerate(range(0, len(data), CHUNK_BYTES)):
        piece = data[start : start + CHUNK_BYTES]
        yield Chunk(piece, (Part(item, number, 0, len(piece)),))


def blocks_of(chunk: Chunk) -> tuple[str, list[tuple[Part, Block]]]:
    """Return a chunk's digest and the blocks it holds."""
    name = hashlib.sha256(chunk.data).hexdigest()
    if len(chunk.parts) == 1:  # the block is the chunk
        return name, [(p, Block(name, 0, p.bytes_, name)) for p in chunk.parts]
    view = memoryview(chunk.data)
    digests = [hashlib.sha256(view[p.start : p.start + p.bytes_]).hexdigest() for p in chunk.parts]
    return name, [(p, Block(name, p.start, p.bytes_, d)) for p, d in zip(chunk.parts, digests, strict=True)]


def needed(
    blocks: Sequence[Block], sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], itemsize: int
) -> list[int]:
    """Return the numbers of the blocks that a box of a stored shard touches.

    Args:
        blocks: the shard's bytes, C order.
        sizes: the shard's shape.
        offsets: the box's origin within the shard, in elements.
        lengths: the box's shape.
        itemsize: bytes an element.
    """
    if math.prod(lengths) == 0:
        return []
    starts, run_bytes = _runs(sizes, offsets, lengths, itemsize)
    ends = np.cumsum([b.bytes_ for b in blocks])
    first = np.searchsorted(ends, starts, side="right")
    last = np.searchsorted(ends, starts + run_bytes - 1, side="right")
    touched = np.zeros(len(blocks) + 1, dtype=np.int64)
    np.add.at(touched, first, 1)
    np.add.at(touched, last + 1, -1)
    return [int(i) for i in np.flatnonzero(np.cumsum(touched[:-1]))]


def _runs(
    sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], itemsize: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]:
    """Return where in the shard's bytes each contiguous run of a box starts, and how many bytes a run has."""
    strides = [itemsize * math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
    # Dimensions from `whole` on lie in one run: those after it are taken whole.
    whole = len(sizes)
    while whole > 0 and all(lengths[d] == sizes[d] for d in range(whole, len(sizes))):
        whole -= 1
    run = itemsize * math.prod(lengths[whole:])
    starts = np.zeros(1, dtype=np.int64)
    for d in range(whole):
        steps = (offsets[d] + np.arange(lengths[d], dtype=np.int64)) * strides[d]
        starts = (starts[:, None] + steps[None, :]).reshape(-1)
    inner = sum(offsets[d] * strides[d] for d in range(whole, len(sizes)))
    return starts + inner, run

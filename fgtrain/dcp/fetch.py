"""Which bytes of which chunks a load needs, in as few requests as is worth it, and where they go."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.planner import ReadItem

from fgtrain.dcp.blocks import Block, needed
from fgtrain.dcp.record import Item, chunk_key
from fgtrain.errors import Corrupt, KeyMissing
from fgtrain.stores import Store

# Bytes between two blocks that cost less to read than another request does.
GAP_BYTES = 256 << 10


class Wanted:
    """An item that the plan asks for: its bytes as they come in, and the numbers of the blocks still to come.

    `shape` and `dtype` are those of the stored shard; a value is a flat run of bytes.
    """

    def __init__(self, item: Item, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.item = item
        self.shape = shape
        self.dtype = dtype
        self.reads: list[ReadItem] = []
        self.missing: set[int] = set()
        self._ends = list(accumulate(b.bytes_ for b in item.blocks))
        self.buffer: torch.Tensor | None = None

    def ask(self, read: ReadItem) -> None:
        """Add what one entry of the plan needs of this item."""
        self.reads.append(read)
        if len(self.item.blocks) < 2 or self.item.offset is None:
            self.missing |= set(range(len(self.item.blocks)))
        else:
            box = read.storage_offsets, read.lengths
            self.missing |= set(needed(self.item.blocks, self.shape, *box, self.dtype.itemsize))

    def allocate(self) -> None:
        """Make room for the item's bytes, once; in one thread. Pages that no block is written to are never touched."""
        if self.buffer is None:
            self.buffer = torch.empty(self.item.bytes_, dtype=torch.uint8)

    @property
    def bytes_(self) -> torch.Tensor:
        """The item's bytes, flat."""
        assert self.buffer is not None
        return self.buffer

    def room(self, number: int) -> memoryview:
        """Return where the bytes of a block go."""
        end = self._ends[number]
        return self.bytes_.numpy().data[end - self.item.blocks[number].bytes_ : end]

    def shard(self) -> torch.Tensor:
        """Return the stored shard; only the boxes that were asked for have been read."""
        return self.bytes_.view(self.dtype).reshape(self.shape)

    def drop(self) -> None:
        """Give the memory back."""
        self.buffer = None


class Target(NamedTuple):
    """A block to read, and the item that it is piece `number` of."""

    block: Block
    wanted: Wanted
    number: int


class Fetch(NamedTuple):
    """One request: the bytes [start, end) of a chunk, and the blocks in them."""

    chunk: str
    start: int
    end: int
    targets: tuple[Target, ...]


def fetches(items: Iterable[Wanted]) -> Iterator[Fetch]:
    """Yield the requests for all blocks that are missing: one item's after the other's, neighbours together.

    Room for what a request brings is made when it is drawn.
    """
    chunks: defaultdict[str, list[Target]] = defaultdict(list)
    for wanted in items:
        for number in sorted(wanted.missing):
            block = wanted.item.blocks[number]
            chunks[block.chunk].append(Target(block, wanted, number))
    for chunk, targets in chunks.items():
        for run in _neighbours(sorted(targets, key=lambda t: t.block.start)):
            for target in run:
                target.wanted.allocate()
            yield Fetch(chunk, run[0].block.start, max(t.block.start + t.block.bytes_ for t in run), tuple(run))


def _neighbours(targets: list[Target]) -> Iterator[list[Target]]:
    run: list[Target] = []
    end = 0
    for target in targets:
        if run and target.block.start > end + GAP_BYTES:
            yield run
            run = []
        run.append(target)
        end = max(end, target.block.start + target.block.bytes_)
    yield run


def fetch(request: Fetch, store: Store, prefix: str) -> tuple[Target, ...]:
    """Read, verify and put in place what a request is for.

    Raises:
        Corrupt: missing, truncated or altered; names the item.
        StoreUnavailable: worth another try.
    """
    first = request.targets[0].wanted.item.fqn
    try:
        data = memoryview(store.get(chunk_key(prefix, request.chunk), request.start, request.end))
    except KeyMissing as error:
        raise Corrupt(f"{first}: chunk {request.chunk[:12]} is missing") from error
    for block, wanted, number in request.targets:
        found = data[block.start - request.start :][: block.bytes_]
        if hashlib.sha256(found).hexdigest() != block.digest:
            raise Corrupt(f"{wanted.item.fqn}: chunk {request.chunk[:12]} does not hold what was written")
        wanted.room(number)[:] = found
    return request.targets

"""Shards: the part of a tensor that this rank holds, where a strategy spreads tensors over ranks.

A shard is a run of elements of the whole tensor, flattened in C order. That covers FSDP2, which splits the first
dimension, as well as ZeRO, which cuts where tensors laid end to end happen to be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor, Shard


class Sharded(NamedTuple):
    """Elements [start, start + local.numel()) of a tensor of `shape`, flattened in C order; `local` is contiguous."""

    local: torch.Tensor
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self.local.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor."""
        return math.prod(self.shape) * self.local.element_size()

    @property
    def held(self) -> tuple[int, int]:
        """The bytes [start, stop) of the whole tensor that are here."""
        item = self.local.element_size()
        return self.start * item, (self.start + self.local.numel()) * item


Entry = torch.Tensor | Sharded
"""A tensor of the state as one rank has it: whole, or a shard."""


def rows(count: int, rank: int, size: int) -> range:
    """Return the rows that a rank holds of a tensor split along its first dimension, as `torch.chunk` does it."""
    each = -(-count // size)
    return range(min(rank * each, count), min((rank + 1) * each, count))


def entry(tensor: torch.Tensor, local: torch.Tensor | None = None) -> Entry:
    """Return a live tensor as an entry of the state; `local` in place of its own elements (a moving average, say)."""
    if not isinstance(tensor, DTensor):
        return tensor if local is None else local
    here = own(tensor) if local is None else local
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    if mesh.size() == 1:
        return here
    [placement] = tensor.placements
    assert isinstance(placement, Shard) and placement.dim == 0, placement
    mine = rows(shape[0], mesh.get_local_rank(), mesh.size())
    row = math.prod(shape[1:])
    assert here.numel() == len(mine) * row, (here.shape, shape, mine)
    return Sharded(here, shape, mine.start * row)


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a live tensor that are here, in the memory where they live."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            local: torch.Tensor = tensor.to_local()
            return local
    return tensor.detach()


def part(whole: torch.Tensor, of: Entry) -> torch.Tensor:
    """Return what a rank that holds `of` needs of a whole tensor, in the shape of what it holds."""
    if isinstance(of, torch.Tensor):
        return whole
    flat = whole.contiguous().reshape(-1)[of.start : of.start + of.local.numel()]
    return flat.view(of.local.shape)


def fill(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy a whole tensor's values into a live tensor, of which this rank may hold a shard."""
    with torch.no_grad():
        own(tensor).copy_(part(whole, entry(tensor)))

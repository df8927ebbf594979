"""Layout: where each tensor of the state lies in its group, and who stores which part of it.

Tensors are laid out as they lie in memory (`TensorSpan.order` tells how), so that staging is a plain copy of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fgtrain.manifest import TensorSpan, chunk_count
from fgtrain.shards import Entry, Sharded

_ALIGN = 64  # so that any dtype can be viewed in place
_SMALLEST_CHUNK, _LARGEST_CHUNK = 256 << 10, 32 << 20
_CHUNKS = 64  # about so many to a state: few enough requests, fine enough to share evenly

Tensors = Mapping[str, Mapping[str, Entry]]
"""group -> name -> tensor, or this rank's shard of it."""

Fingerprint = tuple[tuple[str, int, int], ...]


def fingerprint(tensors: Tensors) -> Fingerprint:
    """Return what changes when a tensor is replaced, moved or resized; its bytes may change.

    A plan holds on to the memory that it copies from, so while it is kept no other tensor can be at the same address.
    """
    return tuple(
        (name, here.data_ptr(), here.numel())
        for some in tensors.values()
        for name, t in some.items()
        for here in [t.local if isinstance(t, Sharded) else t]
    )


def chunk_bytes_for(state_bytes: int) -> int:
    """Return the chunk size for a state: a power of two that depends on nothing but the state's size."""
    wanted = 1 << max(0, (state_bytes // _CHUNKS - 1).bit_length()) if state_bytes > _CHUNKS else 1
    return min(max(wanted, _SMALLEST_CHUNK), _LARGEST_CHUNK)


class Layout:
    """Spans of all tensors, by name, in the order of their offsets within each group."""

    def __init__(self, tensors: Tensors, chunk_bytes: int | None = None) -> None:
        self.spans: dict[str, TensorSpan] = {}
        self.group_bytes: dict[str, int] = {}
        for group in sorted(tensors):
            offset = 0
            for name in sorted(tensors[group]):
                t = tensors[group][name]
                offset = -(-offset // _ALIGN) * _ALIGN
                self.spans[name] = _span(t, group, offset)
                offset += t.nbytes
            self.group_bytes[group] = offset
        self.chunk_bytes = chunk_bytes or chunk_bytes_for(sum(self.group_bytes.values()))

    def fits(self, tensors: Tensors) -> bool:
        """Tell whether this is the layout of these tensors: the same names in the same groups, as long as they were."""
        there = {name: (group, t.nbytes) for group, some in tensors.items() for name, t in some.items()}
        return there == {name: (span.group, span.bytes_) for name, span in self.spans.items()}

    def chunks(self) -> list[tuple[str, int, int]]:
        """Return (group, number, bytes) of every chunk, in a fixed order."""
        return [
            (group, i, min(self.chunk_bytes, bytes_ - i * self.chunk_bytes))
            for group, bytes_ in self.group_bytes.items()
            for i in range(chunk_count(bytes_, self.chunk_bytes))
        ]

    def share(self, rank: int, size: int) -> dict[str, tuple[int, int]]:
        """Return the bytes [start, stop) of each group that a rank stores: whole chunks, even over ranks.

        Each group is shared on its own, so that what changes is even whether or not what is frozen is stored too.
        """
        found = {}
        for group, bytes_ in self.group_bytes.items():
            sizes = [c[2] for c in self.chunks() if c[0] == group]
            mine = split(sizes, rank, size)
            if mine:
                found[group] = (mine.start * self.chunk_bytes, min(mine.stop * self.chunk_bytes, bytes_))
        return found


def _span(t: Entry, group: str, offset: int) -> TensorSpan:
    dtype = str(t.dtype).removeprefix("torch.")
    order = () if isinstance(t, Sharded) else memory_order(t)
    return TensorSpan(dtype, tuple(t.shape), group, offset, t.nbytes, order)


def memory_order(t: torch.Tensor) -> tuple[int, ...]:
    """Return a dense tensor's dimensions from the slowest to the fastest in memory; () for C order (or a copy)."""
    if t.is_contiguous():
        return ()
    order = tuple(sorted(range(t.dim()), key=lambda d: (-t.stride()[d], d)))
    return order if t.permute(order).is_contiguous() else ()


def is_dense(t: Entry) -> bool:
    """Tell whether a tensor's bytes lie without gaps, so that `flat_bytes` is a view."""
    return isinstance(t, Sharded) or t.is_contiguous() or bool(memory_order(t))


def split(sizes: list[int], rank: int, size: int) -> range:
    """Return which of consecutive pieces of these sizes a rank handles: contiguous, even by bytes."""
    total, start, mine = sum(sizes), 0, []
    for i, bytes_ in enumerate(sizes):
        if min(start * size // max(total, 1), size - 1) == rank:  # pieces of no bytes at the end are the last rank's
            mine.append(i)
        start += bytes_
    return range(mine[0], mine[-1] + 1) if mine else range(0)


def flat_bytes(t: torch.Tensor, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """View a tensor as flat uint8 in memory order; one that is not dense is copied."""
    order = memory_order(t) if order is None else order
    t = t.detach()
    flat = (t.permute(order) if order else t.contiguous()).reshape(-1)
    if flat.numel() <= 1:  # of any stride, and yet contiguous
        flat = flat.as_strided((flat.numel(),), (1,))
    return flat.view(torch.uint8)


def tensor_at(buffer: torch.Tensor, span: TensorSpan) -> torch.Tensor:
    """View a span of a group's bytes (uint8, flat) as the tensor it holds."""
    flat = buffer[span.offset : span.offset + span.bytes_].view(getattr(torch, span.dtype))
    if not span.order:
        return flat.reshape(span.shape)
    stored = flat.reshape([span.shape[d] for d in span.order])
    return stored.permute([span.order.index(d) for d in range(len(span.order))])

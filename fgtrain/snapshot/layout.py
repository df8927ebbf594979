"""Layout: where each tensor of the state lies in its group, and how to cut chunks out of live tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from fgtrain.manifest import TensorSpan, chunk_count

CHUNK_BYTES = 8 << 20
_ALIGN = 64  # so that any dtype can be viewed in place

Tensors = Mapping[str, Mapping[str, torch.Tensor]]
"""group -> name -> tensor."""


class Layout:
    """Spans of all tensors, by name, in the order of their offsets within each group."""

    def __init__(self, tensors: Tensors, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes = chunk_bytes
        self.spans: dict[str, TensorSpan] = {}
        self.group_bytes: dict[str, int] = {}
        for group in sorted(tensors):
            offset = 0
            for name in sorted(tensors[group]):
                t = tensors[group][name]
                offset = -(-offset // _ALIGN) * _ALIGN
                dtype = str(t.dtype).removeprefix("torch.")
                self.spans[name] = TensorSpan(dtype, tuple(t.shape), group, offset, t.nbytes)
                offset += t.nbytes
            self.group_bytes[group] = offset

    def chunks(self) -> list[tuple[str, int, int]]:
        """Return (group, number, bytes) of every chunk, in a fixed order."""
        return [
            (group, i, min(self.chunk_bytes, bytes_ - i * self.chunk_bytes))
            for group, bytes_ in self.group_bytes.items()
            for i in range(chunk_count(bytes_, self.chunk_bytes))
        ]


def split(sizes: list[int], rank: int, size: int) -> range:
    """Return which of consecutive pieces of these sizes a rank handles: contiguous, even by bytes."""
    total, start, mine = sum(sizes), 0, []
    for i, bytes_ in enumerate(sizes):
        if start * size // max(total, 1) == rank:
            mine.append(i)
        start += bytes_
    return range(mine[0], mine[-1] + 1) if mine else range(0)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View (or copy, if it is not contiguous or not on the CPU) a tensor as flat uint8."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def read_group(
    spans: Mapping[str, TensorSpan], tensors: Mapping[str, torch.Tensor], start: int, stop: int
) -> bytearray:
    """Copy the bytes [start, stop) of a group out of its live tensors; gaps are zero."""
    out = bytearray(stop - start)
    view = torch.frombuffer(out, dtype=torch.uint8) if out else None
    for span, tensor in _overlapping(spans, tensors, start, stop):
        lo, hi = max(start, span.offset), min(stop, span.offset + span.bytes_)
        assert view is not None
        view[lo - start : hi - start] = as_bytes(tensor)[lo - span.offset : hi - span.offset]
    return out


def _overlapping(
    spans: Mapping[str, TensorSpan], tensors: Mapping[str, torch.Tensor], start: int, stop: int
) -> Iterator[tuple[TensorSpan, torch.Tensor]]:
    for name, tensor in tensors.items():
        span = spans[name]
        if span.offset < stop and span.offset + span.bytes_ > start:
            yield span, tensor


def tensor_at(buffer: torch.Tensor, span: TensorSpan) -> torch.Tensor:
    """View a span of a group's bytes (uint8, flat) as the tensor it holds."""
    flat = buffer[span.offset : span.offset + span.bytes_]
    return flat.view(getattr(torch, span.dtype)).reshape(span.shape)

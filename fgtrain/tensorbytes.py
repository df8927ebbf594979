"""Tensors of a snapshot as bytes, straight from its chunks: no torch, no more than a few chunks in memory."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fgtrain.errors import UserError
from fgtrain.manifest import Manifest, TensorSpan
from fgtrain.runstore import RunStore

_CHUNKS_HELD = 3


class TensorBytes:
    """Reads tensors of one snapshot. Reading them in the order of their offsets reads each chunk once."""

    def __init__(self, runs: RunStore, manifest: Manifest) -> None:
        self._manifest = manifest
        self._chunk = lru_cache(_CHUNKS_HELD)(runs.get_chunk)

    def read(self, name: str) -> bytes:
        """Return a tensor's bytes, little-endian, in C order.

        Raises:
            Corrupt: a chunk does not verify.
            StoreUnavailable: worth another try.
        """
        span = self._manifest.tensors[name]
        stored = b"".join(self._chunk(c)[a:b] for c, a, b in stretches(self._manifest, span))
        return c_order(stored, span)


def stretches(manifest: Manifest, span: TensorSpan) -> Iterator[tuple[str, int, int]]:
    """Yield where a span's bytes lie: (chunk, start, stop) in the chunk."""
    group = manifest.groups[span.group]
    size, at, stop = group.chunk_bytes, span.offset, span.offset + span.bytes_
    while at < stop:
        number, start = divmod(at, size)
        end = min(size, start + stop - at)
        yield group.chunks[number], start, end
        at += end - start


def c_order(stored: bytes, span: TensorSpan) -> bytes:
    """Return the bytes of a tensor in C order, however `span.order` says that they are stored.

    Raises:
        UserError: they have to be reordered, and numpy is not installed.
    """
    if not span.order or not stored:
        return stored
    numpy = import_numpy()
    items = numpy.frombuffer(stored, numpy.dtype((numpy.void, span.bytes_ // math.prod(span.shape))))
    as_stored = items.reshape([span.shape[d] for d in span.order])
    ordered: bytes = as_stored.transpose([span.order.index(d) for d in range(len(span.order))]).tobytes()
    return ordered


def import_numpy() -> Any:
    """Import numpy, which a bare installation lacks.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise UserError("this needs numpy: pip install numpy") from None

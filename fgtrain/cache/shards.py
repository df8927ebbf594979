"""Which prepared pictures lie in which shard, and where. Pure.

A shard holds, for its items in order, the pixels (RGB, H x W x 3 bytes), then a byte an item (1: whole, 0: could not be
decoded), then the SHA-256 of all that. Items are ordered by digest and shards cut by its first bits: a picture more or
less changes one shard, the others keep their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from itertools import accumulate
from typing import NamedTuple

from fgtrain.preparation import Preparation

SHARD_BYTES = 128 << 20
SEAL_BYTES = 32
_FORMAT = "fglaunch pixels 1"
_MAKERS = ("pillow", "simplejpeg", "torch")  # other versions of these may give other bits


class Item(NamedTuple):
    """A prepared picture: the SHA-256 of its file, in hex, and its size in pixels."""

    digest: str
    width: int
    height: int

    @property
    def bytes_(self) -> int:
        """Size of its pixels."""
        return self.width * self.height * 3


class Shard(NamedTuple):
    """Items, where each begins, and the size of the whole file."""

    name: str
    items: tuple[Item, ...]
    offsets: tuple[int, ...]
    bytes_: int

    @property
    def flags_at(self) -> int:
        """Where the bytes begin that tell which items are whole."""
        return self.bytes_ - SEAL_BYTES - len(self.items)


def makers() -> str:
    """Name what makes pixels, with versions."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _MAKERS)


def shards(items: Iterable[Item], prepare: Preparation, made_by: str, *, most: int = SHARD_BYTES) -> list[Shard]:
    """Divide items, each taken once, into shards of about `most` bytes, named by all that decides their bytes."""
    unique = sorted(set(items))
    bits = max(0, (sum(i.bytes_ for i in unique) - 1) // most).bit_length()
    groups: dict[int, list[Item]] = {}
    for item in unique:
        groups.setdefault(int(item.digest[:8], 16) >> (32 - bits), []).append(item)
    return [_shard(tuple(group), prepare, made_by) for _, group in sorted(groups.items())]


def _shard(items: tuple[Item, ...], prepare: Preparation, made_by: str) -> Shard:
    text = "\n".join([_FORMAT, made_by, repr(tuple(prepare)), *(f"{i.digest} {i.width} {i.height}" for i in items)])
    *offsets, end = accumulate((i.bytes_ for i in items), initial=0)
    return Shard(hashlib.sha256(text.encode()).hexdigest()[:40], items, tuple(offsets), end + len(items) + SEAL_BYTES)

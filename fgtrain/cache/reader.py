"""Prepared pictures, read from mapped shards."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fgtrain.cache.shards import Item, Shard

if TYPE_CHECKING:
    from fgtrain.source import Source


class Spot(NamedTuple):
    """Where a picture lies: the number of its shard and of the item in it."""

    shard: int
    item: int


def spots(items: Sequence[Item | None], layout: Sequence[Shard]) -> npt.NDArray[np.int32]:
    """Return where each item lies, shape (N, 2), as rows of `Spot`; shard -1: nowhere."""
    found = {item: (s, i) for s, shard in enumerate(layout) for i, item in enumerate(shard.items)}
    return np.array([found[item] if item else (-1, 0) for item in items], np.int32).reshape(-1, 2)


class Cached:
    """Reads what the cache has, and asks another source for the rest. Shards are mapped when first needed."""

    def __init__(
        self, folder: Path, layout: Sequence[Shard], spots_N2: npt.NDArray[np.int32], otherwise: Source
    ) -> None:
        self._folder, self._layout, self._spots_N2, self._otherwise = folder, layout, spots_N2, otherwise
        self._maps: dict[int, mmap.mmap | None] = {}

    def expect(self, numbers: Sequence[int]) -> None:
        """See `Source.expect`: the kernel starts to read them all."""
        for number in numbers:
            spot = self._spot(number)
            if (pixels := self._map(spot.shard)) is not None and hasattr(mmap, "MADV_WILLNEED"):
                shard = self._layout[spot.shard]
                start = shard.offsets[spot.item] // mmap.PAGESIZE * mmap.PAGESIZE
                end = shard.offsets[spot.item] + shard.items[spot.item].bytes_
                pixels.madvise(mmap.MADV_WILLNEED, start, end - start)

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        """See `Source.read`."""
        spot = self._spot(number)
        pixels = self._map(spot.shard)
        if pixels is None:
            return self._otherwise.read(number)
        shard = self._layout[spot.shard]
        if not pixels[shard.flags_at + spot.item]:
            return self._otherwise.read(number)
        item = shard.items[spot.item]
        flat = np.frombuffer(pixels, np.uint8, item.bytes_, shard.offsets[spot.item])
        return flat.reshape(item.height, item.width, 3)

    def _spot(self, number: int) -> Spot:
        shard, item = self._spots_N2[number]
        return Spot(int(shard), int(item))

    def _map(self, number: int) -> mmap.mmap | None:
        """Return a shard, None if it is not there."""
        if number not in self._maps:
            self._maps[number] = _mapped(self._folder, self._layout[number]) if number >= 0 else None
        return self._maps[number]


def _mapped(folder: Path, shard: Shard) -> mmap.mmap | None:
    try:
        with (folder / shard.name).open("rb") as file:
            pixels = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # of an empty file
        return None
    return pixels if len(pixels) == shard.bytes_ else None

"""What is done to a picture before anything random: the part of the pixel path that a cache may hold. Pure.

Sizes are (width, height) in pixels, upright, as displayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fgtrain.data import Images, Split

REDUCTIONS = (8, 4, 2)
"""By what a JPEG decoder can shrink for next to nothing: it computes fewer of each block's 8 x 8 pixels."""

SPARE = 2
"""A reduced picture has at least so many times the pixels, along a side, that are wanted. Source: decision 015."""


class Preparation(NamedTuple):
    """Scale a picture so that its short side is `side`, keeping its shape; smaller ones only if `enlarge`.

    With `side` None a picture stays as it is.
    """

    side: int | None
    enlarge: bool = True

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that a picture of this size gets; the long side is rounded down, as torchvision does."""
        short, side = min(width, height), self.side
        if side is None or side == short or (short < side and not self.enlarge):
            return width, height
        return max(side, width * side // short), max(side, height * side // short)

    def reduction(self, width: int, height: int) -> int:
        """Return by what the decoder may shrink first without a loss that matters."""
        if self.side is None:
            return 1
        return next((r for r in REDUCTIONS if min(width, height) >= r * SPARE * self.side), 1)


def preparation(data: Images, split: Split) -> Preparation:
    """Say how a split's pictures are prepared: cuts of a fixed size come from a picture of a fixed short side.

    Cuts of a random share of the picture (`data.scale`) come from the picture itself, or from one that `data.shrink`
    limits.
    """
    if split == "train" and data.scale is not None:
        return Preparation(data.shrink, enlarge=False)
    return Preparation(data.resize)

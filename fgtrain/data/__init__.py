"""Data sets: each file in this package is one, found by its name.

A data set part is light: it lists its samples (paths and labels) without torch, so that the launching side
can plan and check before anything starts. Only `read` touches pixels, and imports what it needs when called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from fgtrain.parts import Family, Part
from fgtrain.preparation import Preparation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Split = Literal["train", "val"]


class Sample(NamedTuple):
    """One labelled picture: `name` is unique in its split, relative to the data set's root, `/`-separated."""

    name: str
    label: int


class Index(NamedTuple):
    """Everything a plan needs to know of a data set. Labels are positions in `classes`."""

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Return the samples of one split."""
        return self.train if name == "train" else self.val


class BadImage(NamedTuple):
    """A picture that cannot be used, and why, in a few words."""

    name: str
    reason: str


class Data(Family):
    """What every data set offers."""

    __slots__ = ()
    package = "fgtrain.data"

    # Fields that every data set has (declared as struct fields by `Images`).
    resize: int
    crop: int
    scale: tuple[float, float] | None
    shrink: int | None
    on_bad_image: Literal["fail", "skip"]

    def index(self) -> Index:
        """List classes and samples, in an order that depends on nothing but the data.

        Raises:
            UserError: the folder is missing, incomplete or contradicts itself.
        """
        raise NotImplementedError

    def passed_over(self) -> list[str]:
        """Return the names of files that lie among the pictures and are none of the samples."""
        return []

    def inspect(self, samples: Iterable[Sample]) -> list[BadImage]:
        """Find pictures that are missing, empty, truncated or not pictures, without decoding them."""
        raise NotImplementedError

    def read(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """Decode one picture to RGB, shape (height, width, 3).

        Raises:
            Corrupt: the message names the file and what is wrong with it.
        """
        raise NotImplementedError

    def expect(self, samples: Iterable[Sample]) -> None:
        """These will be read soon, in this order; who fetches from afar can begin."""

    def prepared(self, sample: Sample, prepare: Preparation) -> npt.NDArray[np.uint8]:
        """Return one picture as training starts from it: decoded and scaled.

        Raises:
            Corrupt: see `read`.
        """
        from fgtrain.decoding import resized

        pixels = self.read(sample)
        return resized(pixels, prepare.size(pixels.shape[1], pixels.shape[0]))


class Images(Part, Data, frozen=True):
    """Fields common to data sets of pictures.

    `resize` is the short side in pixels to which a picture is scaled before the crop, `crop` the side of the square
    that the model sees. Training crops at random (keyed, see `fgtrain.keyed`) and flips half of the pictures when
    `flip`; evaluation crops the centre. `scale` replaces the fixed-size random crop by one that covers this share of
    the area (min, max), resized to `crop`; it is cut from the picture as it is, or, with `shrink`, from one whose
    short side has been scaled down to so many pixels. `mean` and `std` are per RGB channel, on a scale of 0 to 1.
    """

    root: str = ""
    resize: int = 256
    crop: int = 224
    flip: bool = True
    scale: tuple[float, float] | None = None
    shrink: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    on_bad_image: Literal["fail", "skip"] = "fail"

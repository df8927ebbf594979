"""Handwritten digits: scikit-learn's 1,797 pictures of 8 x 8 pixels, ten classes. Nothing to download.

Source: https://archive.ics.uci.edu/dataset/80 (the test part of the UCI data set).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fgtrain.data import BadImage, Images, Index, Sample
from fgtrain.errors import Corrupt, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SIDE = 8  # pixels
_WHITE = 16  # the file's greatest pixel value
_HELD_OUT = 5  # one in so many is held out


class Digits(Images, frozen=True):
    """Digits that every installation of scikit-learn brings along, for first steps and tests; no `root`."""

    resize: int = 32
    crop: int = 28
    flip: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def index(self) -> Index:
        """List the digits; a fixed fifth of each class is held out. Imports neither scikit-learn nor numpy.

        Raises:
            UserError: scikit-learn is not installed.
        """
        samples = [Sample(f"{row:04d}", values[-1]) for row, values in enumerate(_rows())]
        held_out = {name for label in range(10) for name in _held_out(samples, label)}
        return Index(
            tuple(map(str, range(10))),
            tuple(sample for sample in samples if sample.name not in held_out),
            tuple(sample for sample in samples if sample.name in held_out),
        )

    def inspect(self, samples: Iterable[Sample]) -> list[BadImage]:
        """Report samples that the file does not have."""
        return [BadImage(s.name, "missing") for s in samples if not _has(s.name)]

    def read(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """Return one digit as RGB, shape (8, 8, 3), the file's 0..16 scaled to 0..255.

        Raises:
            Corrupt: the file has no such digit.
        """
        import numpy as np

        if not _has(sample.name):
            raise Corrupt(f"{_file()}: there is no digit called {sample.name!r}")
        grey = np.array(_rows()[int(sample.name)][:-1], np.uint16).reshape(_SIDE, _SIDE)
        scaled = ((grey * 255 + _WHITE // 2) // _WHITE).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)


def _has(name: str) -> bool:
    """Tell whether the file has a digit of this name."""
    return name.isdecimal() and int(name) < len(_rows()) and name == f"{int(name):04d}"


def _held_out(samples: list[Sample], label: int) -> list[str]:
    """Choose a fifth of one class, by a hash of the name: the choice depends on no generator's version."""
    names = (sample.name for sample in samples if sample.label == label)
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"digits/{name}".encode()).digest())
    return ranked[: round(len(ranked) / _HELD_OUT)]


def _file() -> Path:
    """Locate the digits in the installed package, without importing it."""
    spec = importlib.util.find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        if (file := Path(place, "datasets", "data", "digits.csv.gz")).is_file():
            return file
    raise UserError("data: the digits come with scikit-learn, which is not installed: `pip install 'fglaunch[train]'`")


@cache
def _rows() -> tuple[tuple[int, ...], ...]:
    """Read the file: a row is 64 pixels of 0..16 and the label."""
    with gzip.open(_file(), "rt", encoding="ascii", newline="") as lines:
        return tuple(tuple(int(float(value)) for value in row) for row in csv.reader(lines))

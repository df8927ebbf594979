"""Where prepared pictures come from: decoded when asked for, or from the cache. Both give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fgtrain.data import Images, Sample, Split
from fgtrain.preparation import preparation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Source(Protocol):
    """Prepared pictures by sample number."""

    def expect(self, numbers: Sequence[int]) -> None:
        """These will be read next."""

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        """Return a prepared picture, RGB, shape (H, W, 3); it must not be written to.

        Raises:
            Corrupt: there is none; the message names the file and what is wrong.
        """


class Fresh:
    """Decodes when asked."""

    def __init__(self, data: Images, samples: tuple[Sample, ...], split: Split) -> None:
        self._data, self._samples, self._prepare = data, samples, preparation(data, split)

    def expect(self, numbers: Sequence[int]) -> None:
        """See `Source.expect`; there is nothing to do."""

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        """See `Source.read`."""
        return self._data.prepared(self._samples[number], self._prepare)

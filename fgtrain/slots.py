"""Memory in which loader processes leave micro-batches for their rank: mapped before they are forked, and reused.

torch's own way is new shared memory for every tensor, whose descriptor goes through a socket in a temporary folder.
That costs both sides a handshake and a fault for each page, it ends in a bus error where /dev/shm is small (as in
containers), and who is killed leaves the folder behind. Here only a number travels.
"""

from __future__ import annotations

import itertools
import math
import mmap
import weakref

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE

_keys = itertools.count()
_known: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()
"""By number, for what arrives from a loader process; forks have them all."""


class Slots:
    """`count` slots, one or more, each room for bytes of `shape`. The rank hands them out, and its forks fill them.

    A slot that was handed out is free again as soon as nobody refers any more to the array that was got from it, nor
    to a view of that, nor to a tensor made of one.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.key = next(_keys)
        self._shape = shape
        self._stride = -(-math.prod(shape) // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, count * self._stride)  # shared, and no file: limits of /dev/shm do not apply
        self._free = list(range(count))
        _known[self.key] = self

    def take(self) -> int | None:
        """Take a free slot to be filled; None if there is none. The one that was freed last is the first to go."""
        return self._free.pop() if self._free else None

    def room(self, slot: int) -> npt.NDArray[np.uint8]:
        """Return a slot's array, in the process that fills it."""
        return self._flat(slot).reshape(self._shape)

    def filled(self, slot: int) -> npt.NDArray[np.uint8]:
        """Return the array of a slot that was taken and then filled; when it goes, the slot is free. Once a taking."""
        flat = self._flat(slot)
        weakref.finalize(flat, self._free.append, slot).atexit = False  # all views of it, and tensors, refer to it
        return flat.reshape(self._shape)

    def _flat(self, slot: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._memory, np.uint8, math.prod(self._shape), slot * self._stride)


def by_key(key: int) -> Slots:
    """Return this process's slots of a number."""
    return _known[key]

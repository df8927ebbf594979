"""A file in memory, mapped so that the kernel can put huge pages under it: a fault for each small one costs more.

Huge pages in shared memory are off on most machines (`shmem_enabled` is "never"), but can be asked for stretch by
stretch since Linux 6.1. It is only a faster way: where they are not to be had, the memory is as good without them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import Any

HUGE = 2 << 20  # of x86-64, and of arm64 with small pages of 4 KiB; where they are larger, none is got
_COLLAPSE = 25  # Source: madvise(2), MADV_COLLAPSE
_FIXED, _NORESERVE = 0x10, 0x4000  # Source: mmap(2), MAP_FIXED, MAP_NORESERVE
_NO_ACCESS = 0


class SharedMemory:
    """The first `bytes_` bytes of a file, for reading and writing; `view` is mapped until nobody refers to it.

    Args:
        file: a descriptor, this object's from here on; the file ends at a multiple of `HUGE`.
        bytes_: how many, at least one.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(self, file: int, bytes_: int) -> None:
        self._file = file
        self._start, memory = _mapped(file, rounded(bytes_))
        self.view = memoryview(memory).cast("B")[:bytes_]
        self._refused = sys.platform != "linux"

    def make_huge(self, start: int, stop: int) -> bool:
        """Put huge pages under bytes [start, stop), which keep their contents; False: there are none to be had.

        Threads and processes may call together. Once refused, it is not asked again: to be refused takes long, too.
        """
        first, last = start // HUGE * HUGE, rounded(stop)
        try:
            for at in range(first, last, HUGE) if not self._refused else ():
                os.posix_fallocate(self._file, at, 1)  # where there is nothing at all, nothing is put together
        except OSError:
            self._refused = True
        if not self._refused and _libc().madvise(self._start + first, last - first, _COLLAPSE):
            self._refused = True
        return not self._refused

    def write(self, at: int, data: memoryview) -> None:
        """Copy bytes to `at`: where pages are small and new, that costs less than writing in place."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], at + done)

    def close(self) -> None:
        """Let the descriptor go; the memory stays as long as `view`."""
        os.close(self._file)


def rounded(bytes_: int) -> int:
    """Return how long a file for `bytes_` bytes must be."""
    return -(-bytes_ // HUGE) * HUGE


def _mapped(file: int, bytes_: int) -> tuple[int, ctypes.Array[ctypes.c_ubyte]]:
    """Map a file where huge pages can lie: a place that is large enough is taken first, and the file put into it."""
    whole = bytes_ + HUGE
    taken = _map(None, whole, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
    start = -(-taken // HUGE) * HUGE
    try:
        _map(start, bytes_, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, file)
    except OSError:
        _libc().munmap(taken, whole)
        raise
    memory = (ctypes.c_ubyte * bytes_).from_address(start)
    weakref.finalize(memory, _libc().munmap, taken, whole)
    return start, memory


def _map(at: int | None, bytes_: int, access: int, flags: int, file: int) -> int:
    address = _libc().mmap(at, bytes_, access, flags, file, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "cannot map memory")
    return int(address)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc

"""Freed memory that the C library keeps for the next tensor, where it would give it back to the kernel.

Training allocates and frees the same tensors every step. As glibc comes, large ones are mapped when they are made and
unmapped when they go: each page of each is a fault, and is zeroed, again and again: about a tenth of a step on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # Source: malloc.h
_LARGE = 1 << 30  # bytes; whatever is larger than this is still mapped for itself, where the C library allows for it
_PAD = 64 << 20  # bytes by which the heap grows


def keep_freed_memory() -> None:
    """Have this process keep what it frees, and its forks; without effect where the C library is not glibc.

    Peaks stay what they are, but for gaps between blocks; a process that has been large stays so. Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_TOP_PAD, _PAD)
        if not mallopt(_MMAP_THRESHOLD, _LARGE):  # glibc before 2.35 takes no more than 32 MiB
            mallopt(_MMAP_MAX, 0)

"""Random draws keyed by what they are for, never by who draws them.

A draw depends on the run's seed and on the thing drawn for (an epoch's order, one sample's crop, one micro-batch's
dropout), so that rank count, loader workers and restarts cannot change it. Plain integers, no numpy, no torch.
"""

from __future__ import annotations

import hashlib

_MASK64 = (1 << 64) - 1


def key(purpose: str, *parts: int | str) -> int:
    """Return 64 uniform bits for a purpose and what identifies the draw within it."""
    text = "\x1f".join([purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: int) -> int:
    """Finalise 64 bits. Source: splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


class Permutation:
    """A keyed permutation of range(n) that gives any element in O(1) time and memory.

    A balanced Feistel network on the smallest even number of bits that holds n, walked until it lands below n (fewer
    than four tries on average). Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """

    def __init__(self, n: int, key_: int, rounds: int = 6) -> None:
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        self._round_keys = [key("feistel", key_, r) for r in range(rounds)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        """Return where position `i` (0 <= i < n) is sent."""
        if not 0 <= i < self.n:
            raise IndexError(i)
        while True:
            left, right = i >> self._half_bits, i & self._half_mask
            for k in self._round_keys:
                left, right = right, left ^ (_mix(right ^ k) & self._half_mask)
            i = left << self._half_bits | right
            if i < self.n:
                return i


class Order:
    """The order in which a run sees its samples: position p is a place in epoch p // samples."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._epoch = -1
        self._permutation = Permutation(1, 0)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample index) of a position of the run, in O(1)."""
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = Permutation(self.samples, key("order", self.seed, epoch))
        return epoch, self._permutation[place]

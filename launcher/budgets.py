"""How often, and how soon, to try again. Pure: each class of failure has its own budget, and progress refills all."""

from __future__ import annotations

from typing import NamedTuple

from fgtrain.keyed import key
from launcher.failures import Kind
from launcher.supervision import Budget, Supervision


class Try(NamedTuple):
    """What a budget says to a failure: whether to try again, after how long, and which try of how many it is."""

    allowed: bool
    delay_s: float
    number: int
    of: int


class Ledger:
    """What of each budget is spent since the run last got further than ever before."""

    def __init__(self, settings: Supervision, run: str, best: int = 0) -> None:
        self._settings, self._run = settings, run
        self._spent: dict[Kind, int] = {}
        self.best = best

    def progress(self, step: int) -> bool:
        """Take in a committed step; True if it is a new best one, which refills every budget."""
        if step <= self.best:
            return False
        self.best = step
        self._spent.clear()
        return True

    def spend(self, kind: Kind) -> Try:
        """Take in a failure."""
        number = self._spent[kind] = self._spent.get(kind, 0) + 1
        if kind == "user":
            return Try(False, 0.0, number, 0)
        budget: Budget = getattr(self._settings, kind)
        draw = key("back-off", self._run, kind, self.best, number) / 2**64
        return Try(number <= budget.tries, delay_s(budget, number, draw), number, budget.tries)


def delay_s(budget: Budget, number: int, draw: float) -> float:
    """Return the delay before the `number`th try (from 1): exponential, capped, less a jitter of up to a half.

    Args:
        budget: the class's.
        number: which try in a row.
        draw: uniform in [0, 1), the jitter.
    """
    later = number - budget.free
    if later <= 0:
        return 0.0
    doublings = min(later - 1, 64)  # further on it is capped anyway; floats end at 2**1024
    return min(budget.cap_s, budget.base_s * budget.factor**doublings) * (1 - draw / 2)

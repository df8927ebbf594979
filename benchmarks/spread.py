"""Figures of repeated, paired measurements: medians, quartiles, ratios, and how sure the median is. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, quantiles
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of some measurements and their quartiles; the unit is theirs."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles of one or more values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide measurements that were taken next to each other, pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the true median at least this confidently, whatever the distribution.

    With too few values for it (five, at 0.95) the interval is their whole range.
    Source: order statistics and the sign test; Conover, "Practical Nonparametric Statistics", section 3.2.
    """
    ordered, n = sorted(values), len(values)
    cut, below = 0, 0.0
    for k in range((n + 1) // 2):
        below += math.comb(n, k) / 2**n
        if below > (1 - confidence) / 2:
            break
        cut = k
    return ordered[cut], ordered[n - 1 - cut]

"""How often to take a snapshot, from what it costs and how often runs are interrupted. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

PRIOR_MTBF_S = 4 * 3600.0
"""What to believe before anything has failed; weighs as much as one failure."""


MEMORY_S = 10.0
"""The longest time between two copies into host memory, however seldom runs fail: what is repeated stays seconds."""


class Costs(NamedTuple):
    """Measured costs of a snapshot, in seconds.

    `stall` is what training waits, `latency` the time from staging to commit, `drag` the share of its speed that
    training loses in between; `slots` snapshots may be in flight at once.
    """

    stall: float
    latency: float
    drag: float
    slots: int


def interval_s(costs: Costs, mtbf_s: float) -> float:
    """Return the time between snapshots that loses least: max(L / k, sqrt(2 (C + a L) M)).

    Source: Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006; the cost of an overlapped snapshot is its stall plus its
    drag, and with k slots it cannot be taken more often than every L / k.
    """
    overhead = costs.stall + costs.drag * costs.latency
    return max(costs.latency / costs.slots, math.sqrt(2 * overhead * mtbf_s))


def mtbf_s(running_s: float, failures: int) -> float:
    """Return the mean time between failures after `running_s` seconds, with a prior that weighs one failure."""
    return (running_s + PRIOR_MTBF_S) / (failures + 1)


def failures(worlds: Sequence[int]) -> int:
    """Return how many of a run's attempts followed a failure; one that is larger than the last one followed a join."""
    return sum(after <= before for before, after in pairwise(worlds))


def memory_steps(copy_s: float, step_s: float, mtbf_s: float, share: float = 0.02) -> int:
    """Return every how many steps to stage in memory: what loses least, but copying takes at most `share` of the time.

    A copy costs training no more than the time it takes. Until both times are measured (0), every 10 steps.
    Source: Young, as above: sqrt(2 C M), but no longer than `MEMORY_S`.
    """
    if step_s <= 0 or copy_s <= 0:
        return 10
    wanted_s = min(math.sqrt(2 * copy_s * mtbf_s), MEMORY_S)
    return max(1, math.ceil(max(copy_s / share, wanted_s) / step_s))

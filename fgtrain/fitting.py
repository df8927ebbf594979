"""Which micro-batch fits a run's devices: what was found, and by which step. Pure.

Out of memory, the micro-batch becomes the largest proper divisor of what it was: half of it, where it is even. The
global batch and what a step means stay; there are only more, smaller micro-batches. What was found holds from its step
on, also for whoever takes that step again after a restart: so a run that is killed and resumed computes what it would
have computed, had it lived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import msgspec

from fgtrain.plan import Plan

KEY = "micro.json"


class Cut(msgspec.Struct, frozen=True):
    """From `step` on, micro-batches hold at most `micro` samples."""

    step: int
    micro: int


class Fitted(msgspec.Struct, frozen=True):
    """What a run has found out: the micro-batch that `--fit` chose (None: the recipe's), then each one that failed.

    `shown`: the most samples that evaluation takes at a time where ranks go in lockstep (None: the recipe's).
    """

    chosen: int | None = None
    cuts: tuple[Cut, ...] = ()
    shown: int | None = None

    def micro_at(self, step: int, planned: int) -> int:
        """Return the micro-batch of a step, where the plan's is `planned`: its largest divisor that no cut forbids."""
        return _divisor(planned, min((c.micro for c in self.cuts if c.step <= step), default=planned))

    def cut(self, step: int, micro: int) -> Fitted:
        """Return the same with a smaller micro-batch from `step` on."""
        kept = tuple(c for c in self.cuts if c.step < step or c.micro < micro)
        cuts = tuple(sorted((*kept, Cut(step, micro)), key=lambda c: (c.step, -c.micro)))
        return msgspec.structs.replace(self, cuts=cuts)

    def shown_at_most(self, planned: int) -> int:
        """Return how many samples evaluation takes at a time, where the recipe says `planned`: a divisor of it."""
        return _divisor(planned, self.shown or planned)


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def smaller(micro: int) -> int | None:
    """Return the largest proper divisor of a micro-batch, half of it if it is even; None of 1."""
    return next((micro // d for d in range(2, micro + 1) if micro % d == 0), None)


def replan(plan: Plan, micro: int) -> Plan:
    """Return the plan with another micro-batch; the global batch, steps and samples stay.

    Args:
        plan: of the recipe.
        micro: a divisor of the global batch.
    """
    assert plan.total % micro == 0, f"{micro} is no divisor of {plan.total}"
    return msgspec.structs.replace(plan, micro=micro, micro_batches=plan.total // micro)


def candidates(plan: Plan, ranks: int, determinism: str) -> list[int]:
    """Return the micro-batches that `--fit` may choose from, rising: divisors of the global batch.

    Every one of `ranks` must get one. With "bits", none is larger than the recipe's: any world that can share the
    recipe's micro-batches must be able to share these.
    """
    most = plan.micro if determinism == "bits" else max(plan.total // ranks, 1)
    return [micro for micro in range(1, most + 1) if plan.total % micro == 0]


def largest(sizes: Sequence[int], needs: Callable[[int], int], room: int) -> int:
    """Return the largest of some micro-batches, rising, that does not need more than `room`; the first, if all do."""
    return sizes[max(bisect_right(sizes, room, key=needs), 1) - 1]


def shareable(micro: int, plan: Plan, ranks: int) -> int:
    """Return the largest micro-batch, at most `micro`, that `ranks` ranks can share a global batch of."""
    return max(d for d in range(1, min(micro, max(plan.total // ranks, 1)) + 1) if plan.total % d == 0)

"""Out of memory, a step is taken again with a smaller micro-batch: what is remembered of that, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fgtrain.errors import KeyMissing, StoreError
from fgtrain.fitting import KEY, Fitted, smaller
from fgtrain.plan import Plan
from fgtrain.runstore import RunStore


class Shortage(NamedTuple):
    """At which step so many of so many ranks had no memory for `micro` samples; it goes on with `smaller`, or not."""

    step: int
    ranks: int
    world: int
    micro: int
    smaller: int | None


class Ladder:
    """The micro-batches of one attempt, step by step; all ranks call together and are told the same."""

    def __init__(
        self,
        plan: Plan,
        fitted: Fitted | None = None,
        keep: Callable[[Fitted], None] = lambda fitted: None,
        tell: Callable[[Shortage], None] = lambda shortage: None,
    ) -> None:
        """Go on from what was found before; `keep` and `tell` are called for each step down."""
        self._plan, self._fitted, self._keep, self._tell = plan, fitted or Fitted(), keep, tell

    def parts(self, step: int) -> int:
        """Return into how many micro-batches each of the plan's is cut in a step."""
        return self._plan.micro // self._fitted.micro_at(step, self._plan.micro)

    def shrink(self, step: int, ranks: int, world: int) -> bool:
        """Step down: `ranks` of `world` ranks ran out of memory in a step. Returns whether there was a step left."""
        micro = self._fitted.micro_at(step, self._plan.micro)
        less = smaller(micro)
        if less is not None:
            self._fitted = self._fitted.cut(step, less)
            self._keep(self._fitted)
        self._tell(Shortage(step, ranks, world, micro, less))
        return less is not None


def remembered(runs: RunStore) -> Fitted | None:
    """Return what a run has found out before, None if nothing was.

    Raises:
        Corrupt: it cannot be read.
    """
    try:
        return runs.read(KEY, Fitted)
    except KeyMissing:
        return None


def remember(runs: RunStore, fitted: Fitted, note: Callable[[str], None]) -> None:
    """Keep what was found in the store; where that fails, a restarted run has to find out anew."""
    try:
        runs.write(KEY, fitted)
    except StoreError as error:
        note(f"the micro-batch that fits could not be recorded: {error}")

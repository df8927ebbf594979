"""Out of memory, a step is taken again with a smaller micro-batch: what is remembered of that, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from fgtrain.errors import KeyMissing, Refitted, StoreError
from fgtrain.fitting import KEY, Fitted, smaller
from fgtrain.plan import Plan
from fgtrain.runstore import RunStore

NOT_ENOUGH = "this is not enough memory for the run"


class Shortage(NamedTuple):
    """At which step so many of so many ranks had no memory for `micro` samples; it goes on with `smaller`, or not.

    `refused`: there is something smaller, a single sample, but BatchNorm layers of the network refuse that.
    """

    step: int
    ranks: int
    world: int
    micro: int
    smaller: int | None
    refused: bool = False

    @property
    def end(self) -> str:
        """Why there is no next step down; empty where there is one."""
        if self.smaller is not None:
            return ""
        return "BatchNorm layers refuse a single sample" if self.refused else "there is nothing smaller"


class Ladder:
    """The micro-batches of one attempt, step by step."""

    def __init__(
        self,
        plan: Plan,
        fitted: Fitted | None = None,
        *,
        leads: bool = True,
        keep: Callable[[Fitted], None] = lambda fitted: None,
        tell: Callable[[Shortage], None] = lambda shortage: None,
        advise: Callable[[Shortage], str] = lambda shortage: "",
        refuses: Callable[[], bool] = lambda: False,
    ) -> None:
        """Go on from what was found before.

        Args:
            plan: the run's.
            fitted: what was found before.
            leads: whether this rank speaks for all where all step down together.
            keep: records what is found.
            tell: told of each shortage that all know of.
            advise: says in a line what would save memory, for a rank that leaves.
            refuses: whether the network refuses a single sample; the same on all ranks.
        """
        self._plan, self._fitted, self._leads, self._keep, self._tell = plan, fitted or Fitted(), leads, keep, tell
        self._advise, self._refuses = advise, refuses

    def parts(self, step: int) -> int:
        """Return into how many micro-batches each of the plan's is cut in a step."""
        return self._plan.micro // self._fitted.micro_at(step, self._plan.micro)

    def shrink(self, step: int, ranks: int, world: int) -> None:
        """Step down, all ranks together: `ranks` of them ran out of memory.

        Raises:
            MemoryError: there is no step left.
        """
        shortage = self._step_down(step, ranks, world, keeps=self._leads)
        if self._leads:
            self._tell(shortage)
        if shortage.end:
            raise MemoryError(_spell(shortage))

    def leave(self, step: int, world: int) -> Exception:
        """Step down, this rank alone, where the others cannot be told; returns what to leave with: all start again."""
        shortage = self._step_down(step, 1, world, keeps=True)
        what, advice = _spell(shortage), self._advise(shortage)
        if shortage.end:
            return MemoryError(f"{what}{advice}")
        stays = f"they hold {shortage.smaller} from here on, the global batch stays {self._plan.total}"
        return Refitted(f"{what}; {stays}{advice}")

    def shown(self, planned: int) -> int:
        """Return how many samples evaluation takes at a time, where the recipe says `planned`."""
        return self._fitted.shown_at_most(planned)

    def leave_evaluation(self, planned: int) -> Exception:
        """Take fewer samples at a time from here on, this rank alone; returns what to leave with: all start again."""
        micro = self.shown(planned)
        what, less = f"out of memory in evaluation with micro-batches of {micro}", smaller(micro)
        if less is None:
            return MemoryError(f"{what}; there is nothing smaller: {NOT_ENOUGH}")
        self._fitted = msgspec.structs.replace(self._fitted, shown=less)
        self._keep(self._fitted)
        return Refitted(f"{what}; they hold {less} from here on")

    def _step_down(self, step: int, ranks: int, world: int, *, keeps: bool) -> Shortage:
        micro = self._fitted.micro_at(step, self._plan.micro)
        less = smaller(micro)
        if refused := less == 1 and self._refuses():
            less = None
        if less is not None:
            self._fitted = self._fitted.cut(step, less)
            if keeps:
                self._keep(self._fitted)
        return Shortage(step, ranks, world, micro, less, refused)


def _spell(shortage: Shortage) -> str:
    end = f"; {shortage.end}: {NOT_ENOUGH}" if shortage.end else ""
    return f"step {shortage.step}: out of memory with micro-batches of {shortage.micro}{end}"


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

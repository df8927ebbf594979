"""Strategies: how a network, its gradients and its optimizer state lie over the ranks. Each file here is one.

They are found by name, as all open families are, and light until `build` is called. What the training loop sees of a
strategy is here: the state that it makes, and the `Reduction` that turns micro-batches into a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from fgtrain.parts import Family

if TYPE_CHECKING:
    from fgtrain.place import Place
    from fgtrain.plan import Plan
    from fgtrain.recipe import Recipe
    from fgtrain.reduction import Reduction
    from fgtrain.state import State


class Strategy(Family):
    """What every strategy offers."""

    __slots__ = ()
    package = "fgtrain.strategies"
    extra: ClassVar[str] = ""
    """What has to be installed for it beside the extra `train`: a module, and the extra of its name."""

    def flaws(self, recipe: Recipe) -> Iterator[str]:
        """Yield what of a recipe does not go together with this strategy, each as `field=value: why, and the fix`."""
        raise NotImplementedError

    def build(self, recipe: Recipe, place: Place) -> State:
        """Make the state that a run starts from, a function of the recipe alone; all ranks call together."""
        raise NotImplementedError

    def reduction(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> Reduction:
        """Return what takes the steps of a state that `build` made, and that may have been loaded since."""
        raise NotImplementedError

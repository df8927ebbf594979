"""DDP whose ranks begin no step that the test's gate does not let them begin (`tests.testbed.gate`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgtrain.strategies.ddp import DDP, preload
from tests.testbed.gatepost import behind_the_gate

if TYPE_CHECKING:
    from fgtrain.place import Place
    from fgtrain.plan import Plan
    from fgtrain.recipe import Recipe
    from fgtrain.reduction import Reduction
    from fgtrain.state import State

__all__ = ["Gated", "preload"]


class Gated(DDP):
    """See above."""

    def reduction(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> Reduction:
        """See `Strategy`."""
        return behind_the_gate(super().reduction(recipe, plan, place, state), state)

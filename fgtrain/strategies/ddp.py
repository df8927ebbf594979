"""Data parallelism: every rank holds everything, and gradients are summed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fgtrain.parts import Part
from fgtrain.strategies import Strategy

if TYPE_CHECKING:
    from fgtrain.place import Place
    from fgtrain.plan import Plan
    from fgtrain.recipe import Recipe
    from fgtrain.reduction import Reduction
    from fgtrain.state import State


class DDP(Part, Strategy):
    """torch's DistributedDataParallel; with `determinism="bits"`, sums in the order of one tree."""

    def flaws(self, recipe: Recipe) -> Iterator[str]:
        """See `Strategy`: it goes together with everything."""
        return iter(())

    def build(self, recipe: Recipe, place: Place) -> State:
        """See `Strategy`."""
        from fgtrain.build import build_state

        return build_state(recipe, place.device)

    def reduction(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> Reduction:
        """See `Strategy`."""
        from fgtrain.bits import FixedTree
        from fgtrain.ddp import DataParallel
        from fgtrain.plan import share

        shares = [share(plan.micro_batches, rank, place.size) for rank in range(place.size)]
        match recipe.determinism:
            case "samples":
                return DataParallel(recipe, state, place, shares[place.rank])
            case "bits":
                return FixedTree(recipe, state, place, shares)


def preload() -> None:
    """Import what `DDP.build` will."""
    import fgtrain.bits
    import fgtrain.build
    import fgtrain.ddp  # noqa: F401

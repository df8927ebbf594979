"""Fully sharded data parallelism: every rank holds its rows of each parameter, gradient and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from fgtrain.parts import Part
from fgtrain.strategies import Strategy

if TYPE_CHECKING:
    from fgtrain.place import Place
    from fgtrain.plan import Plan
    from fgtrain.recipe import Recipe
    from fgtrain.reduction import Reduction
    from fgtrain.state import State


class FSDP(Part, Strategy):
    """torch's `fully_shard` (FSDP2).

    Blocks (members of a sequence or list of modules) of at least `unit` parameters are gathered one by one, what is
    left with the network as a whole. Parameters are gathered as `param_dtype` (None: as the recipe's `precision`) and
    gradients summed as `reduce_dtype`; what is kept is fp32. `offload` keeps it in host memory; it changes nothing
    where ranks are CPU processes.
    """

    unit: int = 1_000_000
    param_dtype: Literal["fp32", "bf16"] | None = None
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False

    def flaws(self, recipe: Recipe) -> Iterator[str]:
        """See `Strategy`."""
        if recipe.determinism == "bits":
            yield "determinism=bits: only strategy=ddp sums in one order: --set determinism=samples, or --strategy ddp"
        if recipe.precision == "fp16":
            yield "precision=fp16: strategy=fsdp does not scale losses: --set precision=bf16, or --strategy ddp"
        if self.param_dtype == "bf16" and recipe.precision == "fp32":
            yield "strategy.param_dtype=bf16: the recipe computes in fp32: --set precision=bf16"
        if self.unit < 1:
            yield f"strategy.unit={self.unit}: it must be above 0"

    def build(self, recipe: Recipe, place: Place) -> State:
        """See `Strategy`."""
        from fgtrain.fsdp import build_sharded

        return build_sharded(self, recipe, place)

    def reduction(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> Reduction:
        """See `Strategy`."""
        from fgtrain.fsdp import FullySharded

        return FullySharded(recipe, state, place)


def preload() -> None:
    """Import what `FSDP.build` will."""
    import fgtrain.fsdp  # noqa: F401

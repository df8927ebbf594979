"""DeepSpeed's ZeRO: ranks share optimizer state (1), gradients too (2), parameters too (3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from fgtrain.parts import Part
from fgtrain.strategies import Strategy

if TYPE_CHECKING:
    from fgtrain.place import Place
    from fgtrain.plan import Plan
    from fgtrain.recipe import Recipe
    from fgtrain.reduction import Reduction
    from fgtrain.state import State


BUCKET_ELEMENTS = 8 << 20
"""Gradients summed, and parameters gathered, at a time."""
LIVE_ELEMENTS = 32 << 20
"""Parameters that are gathered at stage 3 at most, but for a layer that is larger."""


class ZeRO(Part, Strategy):
    """ZeRO through DeepSpeed's engine (the extra `deepspeed`). Parameters are fp32, computing is as `precision` says.

    `offload` keeps optimizer state, and at stage 3 parameters, in host memory.
    """

    extra: ClassVar[str] = "deepspeed"

    stage: Literal[1, 2, 3] = 2
    offload: bool = False

    def flaws(self, recipe: Recipe) -> Iterator[str]:
        """See `Strategy`."""
        if recipe.determinism == "bits":
            yield "determinism=bits: only strategy=ddp sums in one order: --set determinism=samples, or --strategy ddp"
        if recipe.precision == "fp16":
            yield "precision=fp16: strategy=zero does not scale losses: --set precision=bf16, or --strategy ddp"
        if recipe.ema and self.stage == 3:
            yield "ema: at strategy.stage=3 no rank has weights to average: --strategy zero2 or fsdp, or --set ema=null"
        if recipe.compile and self.stage == 3:
            yield (
                "compile=true: at strategy.stage=3 layers gather parameters one by one, and little is left to compile:"
                " --strategy zero2 or fsdp, or --set compile=false"
            )

    def build(self, recipe: Recipe, place: Place) -> State:
        """See `Strategy`."""
        from fgtrain.zero import build_zero

        return build_zero(self, recipe, place)

    def reduction(self, recipe: Recipe, plan: Plan, place: Place, state: State) -> Reduction:
        """See `Strategy`."""
        from fgtrain.zero import ZeroEngine, ZeroState

        assert isinstance(state, ZeroState)
        return ZeroEngine(self, recipe, plan, place, state)


def preload() -> None:
    """Import what `ZeRO.build` will, but for DeepSpeed: it looks for devices, which a process that forks must not."""
    import fgtrain.zero  # noqa: F401

"""What would save memory, by the arithmetic of `fgtrain.memory` on a recipe and on what it could be instead. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from fgtrain.data import Images
from fgtrain.ladder import Shortage
from fgtrain.recipe import Recipe, replace
from fgtrain.strategies import Strategy
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO

_GIB = 1 << 30
_SHOWN = 3


class Saving(NamedTuple):
    """An option of `fglaunch`, and how many bytes a rank it would free; `result`: the network would be another."""

    option: str
    bytes_: float
    result: bool


def savings(recipe: Recipe, needs: Callable[[Recipe], int]) -> list[Saving]:
    """Return the options that would save most: first those that leave the result alone.

    Args:
        recipe: the run's.
        needs: returns the bytes that each rank needs for a recipe; it may raise for one that does not work.
    """
    now, found = needs(recipe), []
    for option, other, result in _others(recipe):
        with suppress(Exception):  # a network says in its own words that it takes no smaller pictures, say
            if not any(other.strategy.flaws(other)):
                found.append(Saving(option, now - needs(other), result))
    return sorted((s for s in found if s.bytes_ > 0), key=lambda s: (s.result, -s.bytes_))[:_SHOWN]


def _others(recipe: Recipe) -> Iterator[tuple[str, Recipe, bool]]:
    """Yield options, the recipe with each, and whether the result would be another."""
    if not recipe.checkpointing:
        yield "--set checkpointing=true", replace(recipe, checkpointing=True), False
    if recipe.precision in ("auto", "fp32"):  # where "auto" is bf16 already, this saves nothing
        yield "--set precision=bf16", replace(recipe, precision="bf16"), False
    for option, strategy in _strategies(recipe.strategy):
        yield option, replace(recipe, strategy=strategy), False
    if isinstance(recipe.strategy, FSDP) and recipe.strategy.reduce_dtype == "fp32":
        half = replace(recipe.strategy, reduce_dtype="bf16")
        yield "--set strategy.reduce_dtype=bf16", replace(recipe, strategy=half), True
    if isinstance(recipe.data, Images):
        crop = recipe.data.crop * 3 // 4
        yield f"--set data.crop={crop}", replace(recipe, data=replace(recipe.data, crop=crop)), True
    if recipe.ema:
        yield "--set ema=null", replace(recipe, ema=None), True
    model: Any = recipe.model
    if "*" not in getattr(model, "freeze", "*"):
        yield "--set model.freeze=*", replace(recipe, model=replace(model, freeze=("*",))), True


def _strategies(now: Strategy) -> Iterator[tuple[str, Strategy]]:
    """Yield options, and the strategy that each makes of what there is now."""
    match now:
        case FSDP(unit=unit):
            yield f"--set strategy.unit={unit // 4}", replace(now, unit=unit // 4)
        case ZeRO(stage=stage):
            if stage < 3:
                yield f"--set strategy.stage={stage + 1}", replace(now, stage=stage + 1)
            yield "--strategy fsdp", FSDP()
        case _:
            yield "--strategy fsdp", FSDP()
    if isinstance(now, FSDP | ZeRO) and not now.offload:
        yield "--set strategy.offload=true", replace(now, offload=True)


def spell(shortage: Shortage, recipe: Recipe, found: list[Saving]) -> str:
    """Say in a few lines what happened, what was done about it, and what would save memory."""
    who = f"{shortage.ranks} of {shortage.world} ranks"
    where = f"step {shortage.step}: {who} ran out of memory with micro-batches of {shortage.micro}"
    if shortage.end:
        head = f"{where}, and {shortage.end}"
    else:
        less = shortage.smaller or 1
        head = (
            f"{where}; they hold {less} from here on, {recipe.batch.total // less} a step."
            f" batch.total={recipe.batch.total} stays, the step is taken again, no sample is lost or repeated"
        )
    if not found:
        return head
    return "\n".join([f"{head}. What would save memory in a new run:", *(f"  {spell_one(s)}" for s in found)])


def spell_one(saving: Saving) -> str:
    """Write an option, and what it saves."""
    what = " (changes the result)" if saving.result else ""
    return f"{saving.option}  about {_size(saving.bytes_)} a rank{what}"


def _size(bytes_: float) -> str:
    return f"{bytes_ / _GIB:.1f} GiB" if bytes_ >= _GIB / 10 else f"{bytes_ / 2**20:.1f} MiB"

"""What would save memory, by estimate. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fgtrain.data import Images
from fgtrain.ladder import Shortage
from fgtrain.recipe import SGD, Recipe
from fgtrain.strategies.ddp import DDP

_GIB = 1 << 30
_SHOWN = 3
_KEPT = 0.35  # of activations, with those of blocks computed anew; see `_activation_savings`


class Footprint(NamedTuple):
    """What a rank's memory holds: bytes of parameters, of those that train, and of one sample's activations."""

    parameters: int
    trained: int
    activations: int


class Saving(NamedTuple):
    """An option of `fglaunch`, and how many bytes a rank it would free; `result`: the network would be another."""

    option: str
    bytes_: float
    result: bool


def savings(recipe: Recipe, footprint: Footprint, micro: int, world: int, *, bf16: bool) -> list[Saving]:
    """Return the options that would save most on this world: first those that leave the result alone.

    `bf16`: whether the network computes in 16 bits already.
    """
    found = [*_activation_savings(recipe, footprint, micro, bf16), *_state_savings(recipe, footprint, world)]
    return sorted((s for s in found if s.bytes_ > 0), key=lambda s: (s.result, -s.bytes_))[:_SHOWN]


def _activation_savings(recipe: Recipe, footprint: Footprint, micro: int, bf16: bool) -> Iterator[Saving]:
    """Yield what makes activations smaller.

    With checkpointing, the inputs of n blocks and the insides of one are held: sqrt(n) of n at best. About a third is
    what is left of the dozen blocks that networks have. Source: Chen et al., "Training Deep Nets with Sublinear Memory
    Cost", arXiv 1604.06174, section 3.
    """
    held = footprint.activations * micro
    if not recipe.checkpointing:
        yield Saving("--set checkpointing=true", held * (1 - _KEPT), result=False)
    if not bf16:
        yield Saving("--set precision=bf16", held / 2, result=False)
    data = recipe.data
    if isinstance(data, Images):
        crop = data.crop * 3 // 4
        yield Saving(f"--set data.crop={crop}", held * (1 - (crop / data.crop) ** 2), result=True)


def _state_savings(recipe: Recipe, footprint: Footprint, world: int) -> Iterator[Saving]:
    """Yield what makes the state smaller; gradients and the optimizer's slots are as large as what trains."""
    slots = (1 if recipe.optim.momentum else 0) if isinstance(recipe.optim, SGD) else 2
    if isinstance(recipe.strategy, DDP) and recipe.determinism == "samples":
        yield Saving("--strategy fsdp", footprint.trained * (2 + slots) * (1 - 1 / world), result=False)
    if recipe.ema:
        yield Saving("--set ema=null", footprint.parameters, result=True)
    if "*" not in recipe.model.freeze:
        yield Saving("--set model.freeze=*", footprint.trained * (1 + slots), result=True)


def spell(shortage: Shortage, recipe: Recipe, found: list[Saving]) -> str:
    """Say in a few lines what happened, what was done about it, and what would save memory."""
    who = f"{shortage.ranks} of {shortage.world} ranks"
    where = f"step {shortage.step}: {who} ran out of memory with micro-batches of {shortage.micro}"
    if shortage.smaller is None:
        head = f"{where}, and there is nothing smaller"
    else:
        head = (
            f"{where}; they hold {shortage.smaller} from here on, {recipe.batch.total // shortage.smaller} a step."
            f" batch.total={recipe.batch.total} stays, the step is taken again, no sample is lost or repeated"
        )
    if not found:
        return head
    return "\n".join([f"{head}. What would save memory in a new run:", *map(_line, found)])


def _line(saving: Saving) -> str:
    what = " (changes the result)" if saving.result else ""
    return f"  {saving.option}  about {_size(saving.bytes_)} a rank{what}"


def _size(bytes_: float) -> str:
    return f"{bytes_ / _GIB:.1f} GiB" if bytes_ >= _GIB / 10 else f"{bytes_ / 2**20:.1f} MiB"

"""Out of memory: telling it from other errors, making room, and what would have needed less."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from fgtrain import singles
from fgtrain.data import Images
from fgtrain.fitting import Fitted
from fgtrain.ladder import Ladder, Shortage, remember
from fgtrain.memory import estimate
from fgtrain.mixup import Blend, blended
from fgtrain.optimizer import autocast
from fgtrain.place import Place
from fgtrain.plan import Plan
from fgtrain.recipe import Recipe, replace
from fgtrain.runstore import RunStore
from fgtrain.savings import Saving, savings, spell, spell_one
from fgtrain.shortages import may_say_computation, says_computation
from fgtrain.sizes import measure
from fgtrain.tensors import to_input

_SCARCE = 1 / 4  # of a device's memory: less is free where there was none for a computation, fragments included


def is_oom(error: RuntimeError) -> bool:
    """Tell whether an error says that there was no memory for a computation."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or says_computation(text)
        or (may_say_computation(text) and _is_scarce())
    )


def _is_scarce() -> bool:
    """Tell whether the current GPU is nearly full. PyTorch has given back what it kept before it let anything fail."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the device has failed for another reason
        return False
    return free < total * _SCARCE


def make_room(device: torch.device) -> None:
    """Give back what a computation that failed has left. Call where its exception is no more: it holds its tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_ladder(
    recipe: Recipe, plan: Plan, fitted: Fitted | None, runs: RunStore, place: Place, note: Callable[[str], None]
) -> Ladder:
    """Make a run's ladder: what it finds is kept in the store and told, both by rank 0."""

    def keep(found: Fitted) -> None:
        remember(runs, found, note)

    def tell(shortage: Shortage) -> None:
        make_room(place.device)
        note(spell(shortage, recipe, _would_save(recipe, place.device, shortage.micro, shortage.world)))

    def advise(shortage: Shortage) -> str:
        found = _would_save(recipe, place.device, shortage.micro, shortage.world)
        return f". What would save memory in a new run: {', '.join(map(spell_one, found))}" if found else ""

    return Ladder(
        *(plan, fitted),
        leads=place.leads,
        keep=keep,
        tell=tell,
        advise=advise,
        refuses=lambda: singles.refuses(recipe),
    )


def _would_save(recipe: Recipe, device: torch.device, micro: int, world: int) -> list[Saving]:
    """Return what would save memory on this world; nothing, where the network cannot be looked at without memory."""
    tried = replace(recipe, batch=replace(recipe.batch, micro=micro))
    try:
        return savings(tried, lambda r: estimate(measure(r, device), r, world).on(device.type))
    except Exception:  # it is advice: nothing ends for want of it
        return []


def blank(recipe: Recipe, samples: int) -> torch.Tensor:
    """Return black pictures as a loader gives them, uint8 (N, crop, crop, 3)."""
    assert isinstance(recipe.data, Images)
    return torch.zeros(samples, recipe.data.crop, recipe.data.crop, 3, dtype=torch.uint8)


def forward(
    recipe: Recipe, net: torch.nn.Module, images: torch.Tensor, device: torch.device, blend: Blend | None = None
) -> torch.Tensor:
    """Run a network on pictures, uint8 (N, H, W, 3); returns (N, classes)."""
    x_NCHW = blended(to_input(images, recipe, device), blend)
    with autocast(recipe, device):
        logits_NC: torch.Tensor = net(x_NCHW)
    return logits_NC

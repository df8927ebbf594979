"""`--fit`: the largest micro-batch that fits every rank's device, looked for before a run's first step.

It is tried out, but where ranks go in lockstep through every pass: one that ran out of memory would leave the others
waiting. There the arithmetic of `--dry-run` says it, and what that gets wrong is mended as the run goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import torch
import torch.distributed as dist

from fgtrain import mixup
from fgtrain.fitting import Fitted, candidates, largest, replan, shareable
from fgtrain.freeze import train_mode
from fgtrain.ladder import remember, remembered
from fgtrain.memory import beside_buckets, estimate, slots
from fgtrain.oom import blank, forward, is_oom, make_room
from fgtrain.place import Place, agree, from_leader
from fgtrain.plan import Plan
from fgtrain.recipe import Recipe, replace
from fgtrain.runstore import RunFile, RunStore
from fgtrain.singles import refuses
from fgtrain.sizes import measure
from fgtrain.state import State

_UNSURE = 1.15  # what the arithmetic may be off by
_SPARE = 0.05  # of a device's memory: for fragments, and what libraries take later


def settle_plan(
    run: RunFile, runs: RunStore, place: Place, state: State, note: Callable[[str], None]
) -> tuple[Plan, Fitted | None]:
    """Return a run's plan with the micro-batch that was found to fit, and what else was found; all ranks call together.

    Searches if that is asked for and has not been done. What is found holds for the rest of the run.
    """
    fitted = from_leader(remembered(runs) if place.leads else None, place)
    if run.fit and (fitted is None or fitted.chosen is None):
        ranks = max(run.world.size, place.size)
        if state.lockstep:
            chosen = reckon(run.recipe, run.plan, ranks, place, room(place.device))
        else:
            chosen = search(run.recipe, run.plan, ranks, place, state)
        fitted = msgspec.structs.replace(fitted or Fitted(), chosen=chosen)
        if place.leads:
            remember(runs, fitted, note)
            asked = f"the recipe's are of {run.plan.micro}"
            note(f"--fit: micro-batches of {chosen} samples, {run.plan.total // chosen} a step; {asked}")
    if fitted is None or fitted.chosen is None:
        return run.plan, fitted
    return replan(run.plan, shareable(fitted.chosen, run.plan, place.size)), fitted


def search(recipe: Recipe, plan: Plan, ranks: int, place: Place, state: State) -> int:
    """Return the largest micro-batch that fits on every rank; the smallest if none does: the run will say so.

    Goes up from the recipe's as long as all goes well, and down from it if it does not fit itself.
    """
    sizes = _candidates(recipe, plan, ranks)

    def fits(micro: int) -> bool:
        return not agree(torch.tensor([float(not _fits_here(recipe, state, micro, place))])).item()

    up = [m for m in sizes if m >= plan.micro]
    best = next((i - 1 for i, m in enumerate(up) if not fits(m)), len(up) - 1)
    if best >= 0:
        return up[best]
    down = [m for m in sizes if m < plan.micro]
    return next((m for m in reversed(down) if fits(m)), sizes[0])


def reckon(recipe: Recipe, plan: Plan, ranks: int, place: Place, here: int) -> int:
    """Return the largest micro-batch that fits on every rank by arithmetic; the smallest if none does.

    `here`: the bytes that this rank can have.
    """
    least = int(agree(torch.tensor([here]), dist.ReduceOp.MIN))
    if not place.leads:
        return from_leader(0, place)

    def needs(micro: int) -> int:
        with_it = replace(recipe, batch=replace(recipe.batch, micro=micro))
        return estimate(measure(with_it, place.device), with_it, place.size).on(place.device.type)

    return from_leader(largest(_candidates(recipe, plan, ranks), needs, int(least / _UNSURE)), place)


def room(device: torch.device) -> int:
    """Return the bytes that this process can have in all: of its device, or its share of the machine's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - _SPARE * total)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _candidates(recipe: Recipe, plan: Plan, ranks: int) -> list[int]:
    """Return the micro-batches to choose from, rising; none of a single sample where the network refuses that."""
    sizes = candidates(plan, ranks, recipe.determinism)
    return sizes[1:] if len(sizes) > 1 and refuses(recipe) else sizes


def _fits_here(recipe: Recipe, state: State, micro: int, place: Place) -> bool:
    """Try a micro-batch on this rank's device, beside the memory that training will take; the state stays as it is."""
    train_mode(state.net)
    buffers = [(b, b.clone()) for b in state.net.buffers()]
    try:
        _pass(replace(recipe, batch=replace(recipe.batch, micro=micro)), state, place)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        fits = False
    else:
        fits = True
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    state.optimizer.zero_grad(set_to_none=True)
    make_room(place.device)
    return fits


def _pass(recipe: Recipe, state: State, place: Place) -> None:
    """Run forward and backward of a micro-batch twice: the second time, gradients are there."""
    ballast = torch.empty(later(recipe, state, place), dtype=torch.uint8, device=place.device)
    blend = mixup.Blend(0.5) if recipe.mixup else None
    labels_N = torch.zeros(recipe.batch.micro, dtype=torch.int64, device=place.device)
    for _ in range(2):
        logits_NC = forward(recipe, state.net, blank(recipe, recipe.batch.micro), place.device, blend).float()
        mixup.loss(logits_NC, labels_N, blend, recipe.label_smoothing).backward()  # type: ignore[no-untyped-call]
    del ballast


def later(recipe: Recipe, state: State, place: Place) -> int:
    """Return how many bytes training takes that are not there yet: the optimizer's, buckets, and some to spare."""
    trained = sum(p.nbytes for p in state.net.parameters() if p.requires_grad)
    moments = 0 if state.optimizer.state else slots(recipe) * trained
    buckets = trained if beside_buckets(recipe, place.size) else 0
    cuda = place.device.type == "cuda"
    spare = _SPARE * torch.cuda.get_device_properties(place.device).total_memory if cuda else 0
    return moments + buckets + int(spare)

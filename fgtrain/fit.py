"""`--fit`: the largest micro-batch that fits every rank's device, searched for before a run's first step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fgtrain.fitting import Fitted, candidates, replan, shareable
from fgtrain.freeze import train_mode
from fgtrain.ladder import remember, remembered
from fgtrain.oom import blank, forward, is_oom, make_room
from fgtrain.place import Place, agree, from_leader
from fgtrain.plan import Plan
from fgtrain.recipe import SGD, Recipe
from fgtrain.runstore import RunFile, RunStore
from fgtrain.state import State

_SPARE = 0.05  # of a device's memory: for fragments, and what libraries take later


def settle_plan(
    run: RunFile, runs: RunStore, place: Place, state: State, note: Callable[[str], None]
) -> tuple[Plan, Fitted | None]:
    """Return a run's plan with the micro-batch that was found to fit, and what else was found; all ranks call together.

    Searches if that is asked for and has not been done. What is found holds for the rest of the run.
    """
    fitted = from_leader(remembered(runs) if place.leads else None, place)
    if run.fit and not state.lockstep and (fitted is None or fitted.chosen is None):
        chosen = search(run.recipe, run.plan, max(run.world.size, place.size), place, state)
        fitted = Fitted(chosen, fitted.cuts if fitted else ())
        if place.leads:
            remember(runs, fitted, note)
            asked = f"the recipe's are of {run.plan.micro}"
            note(f"--fit: micro-batches of {chosen} samples, {run.plan.total // chosen} a step; {asked}")
    if fitted is None or fitted.chosen is None:
        return run.plan, fitted
    return replan(run.plan, shareable(fitted.chosen, run.plan, place.size)), fitted


def search(recipe: Recipe, plan: Plan, ranks: int, place: Place, state: State) -> int:
    """Return the largest micro-batch that fits on every rank; 1 if none does: the run will say so.

    Goes up from the recipe's as long as all goes well, and down from it if it does not fit itself.
    """
    sizes = candidates(plan, ranks, recipe.determinism)

    def fits(micro: int) -> bool:
        return not agree(torch.tensor([float(not _fits_here(recipe, state, micro, place.device))])).item()

    up = [m for m in sizes if m >= plan.micro]
    best = next((i - 1 for i, m in enumerate(up) if not fits(m)), len(up) - 1)
    if best >= 0:
        return up[best]
    down = [m for m in sizes if m < plan.micro]
    return next((m for m in reversed(down) if fits(m)), 1)


def _fits_here(recipe: Recipe, state: State, micro: int, device: torch.device) -> bool:
    """Try a micro-batch on this rank's device, beside the memory that training will take; the state stays as it is."""
    train_mode(state.net)
    buffers = [(b, b.clone()) for b in state.net.buffers()]
    try:
        _pass(recipe, state, micro, device)
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
    make_room(device)
    return fits


def _pass(recipe: Recipe, state: State, micro: int, device: torch.device) -> None:
    """Run forward and backward twice: the second time, gradients are there."""
    ballast = [torch.empty(_later(recipe, state, device), dtype=torch.uint8, device=device)]
    for _ in range(2):
        forward(recipe, state.net, blank(recipe, micro), device).float().sum().backward()  # type: ignore[no-untyped-call]
    del ballast


def _later(recipe: Recipe, state: State, device: torch.device) -> int:
    """Return how many bytes training takes that are not there yet: the optimizer's, and some to spare."""
    slots = (1 if recipe.optim.momentum else 0) if isinstance(recipe.optim, SGD) else 2
    trained = 0 if state.optimizer.state else sum(p.nbytes for p in state.net.parameters() if p.requires_grad)
    spare = _SPARE * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return slots * trained + int(spare)

"""Evaluation on all ranks, with exact counts: each held-out sample once, nothing padded, nothing counted twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from fgtrain import loader
from fgtrain.compiled import uncompiled
from fgtrain.data import Sample
from fgtrain.fitting import smaller
from fgtrain.freeze import train_mode
from fgtrain.journal import Journal
from fgtrain.ladder import Ladder
from fgtrain.oom import is_oom, make_room
from fgtrain.optimizer import autocast
from fgtrain.place import Place, agree, agreeing
from fgtrain.plan import Plan, share
from fgtrain.pulse import Phase, Pulse
from fgtrain.recipe import Recipe
from fgtrain.state import State
from fgtrain.tensors import to_input


class HeldOut:
    """The held-out samples in micro-batches: how many, which ones this rank measures, and those, for every time."""

    def __init__(self, recipe: Recipe, samples: tuple[Sample, ...], place: Place) -> None:
        self.micro_batches = -(-len(samples) // recipe.evaluate.micro)
        self.mine = share(self.micro_batches, place.rank, place.size)
        self.batches = loader.evaluation_batches(recipe, samples, self.mine, gpu=place.device.type == "cuda")


@torch.no_grad()
def evaluate(
    recipe: Recipe,
    held_out: HeldOut,
    state: State,
    place: Place,
    stop_asked: Callable[[], bool] = lambda: False,
    ladder: Ladder | None = None,
) -> dict[str, float] | None:
    """Return loss, top-1 and top-5 (shares of 1) and the number of samples, the same on every rank.

    Uses the moving average of the weights if there is one. Every rank fills in its micro-batches' rows of one table, so
    that the sums do not depend on the world size.

    Returns None, on every rank, where some rank was asked to stop meanwhile: a node that is about to go has no time to
    evaluate. The ranks ask each other while they compute.

    Out of memory, a rank takes fewer samples at a time; where ranks go in lockstep, all do, from the next start on
    (`ladder`).
    """
    mine = held_out.mine
    table = torch.zeros(held_out.micro_batches, 4, dtype=torch.float64)
    measure = _Measure(recipe, state, place.device, ladder)
    state.net.eval()
    averaged = state.ema.applied(state.net) if state.ema else nullcontext()
    with averaged, uncompiled(compiles=recipe.compile):
        batches = iter(held_out.batches)
        for turn in range(-(-held_out.micro_batches // place.size)):
            asked = torch.tensor([float(stop_asked())])
            wait = agreeing(asked)
            batch = loader.checked(next(batches), recipe) if turn < len(mine) else None
            if batch is not None and len(batch.labels):
                table[mine[turn]] = measure(batch)
            elif state.lockstep:
                measure.keep_step()
            wait()
            if asked.item():
                return None
    loss, top1, top5, count = agree(table).sum(0).tolist()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count, "samples": int(count)}


class Evaluations:
    """The evaluations of one attempt, as the training loop sees them."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        samples: tuple[Sample, ...],
        state: State,
        place: Place,
        journal: Journal,
        stop_asked: Callable[[], bool],
        pulse: Pulse,
        ladder: Ladder | None = None,
    ) -> None:
        self._recipe, self._plan, self._state, self._ladder = recipe, plan, state, ladder
        self._held_out = HeldOut(recipe, samples, place)
        self._place, self._journal, self._stop_asked, self._pulse = place, journal, stop_asked, pulse

    @property
    def due(self) -> bool:
        """Whether the state as it is should be evaluated, and was not."""
        return self._plan.evaluates_after(self._state.step) and self._state.evaluated != self._state.step

    def settle(self) -> bool:
        """Evaluate, if that is due; False if a rank was asked to stop first, so that it is the next attempt's to do."""
        if not self.due:
            return True
        self._pulse.phase(Phase.EVALUATE)
        state = self._state
        result = evaluate(self._recipe, self._held_out, state, self._place, self._stop_asked, self._ladder)
        train_mode(state.net)
        if result is None:
            return False
        state.evaluated = state.step
        state.best = max(state.best, {"step": state.step, **result}, key=lambda r: r.get("top1", -1.0))
        self._journal.evaluation(state.step, self._plan.epoch_at(state.step), result)
        return True


class _Measure:
    """Measures micro-batches; in smaller pieces, from the first on for which there was no memory."""

    def __init__(self, recipe: Recipe, state: State, device: torch.device, ladder: Ladder | None) -> None:
        self._recipe, self._state, self._device, self._ladder = recipe, state, device, ladder
        self._micro = ladder.shown(recipe.evaluate.micro) if ladder and state.lockstep else recipe.evaluate.micro

    def __call__(self, batch: loader.MicroBatch) -> torch.Tensor:
        """Return sums over a micro-batch. See `_measure`."""
        while (found := self._try(batch)) is None:
            make_room(self._device)
            less = smaller(self._micro)
            if less is None:
                raise torch.OutOfMemoryError("out of memory with a single sample, in evaluation")
            self._micro = less
        return found

    def _try(self, batch: loader.MicroBatch) -> torch.Tensor | None:
        planned = self._recipe.evaluate.micro
        try:
            rows = [
                _measure(self._recipe, self._state.net, piece, self._device)
                for piece in loader.pieces(batch, self._micro, planned // self._micro)
            ]
        except RuntimeError as error:
            if not is_oom(error) or (self._state.lockstep and self._ladder is None):
                raise
            if self._state.lockstep and self._ladder:  # others would wait in a pass that this rank makes no more
                raise self._ladder.leave_evaluation(planned) from error
            return None
        return torch.stack(rows).sum(0)

    def keep_step(self) -> None:
        """Run forward passes that count for nothing, because other ranks make as many."""
        side = self._recipe.data.crop
        for _ in range(self._recipe.evaluate.micro // self._micro):
            with autocast(self._recipe, self._device):
                images = torch.zeros(1, side, side, 3, dtype=torch.uint8)
                self._state.net(to_input(images, self._recipe, self._device))


def _measure(recipe: Recipe, net: torch.nn.Module, batch: loader.MicroBatch, device: torch.device) -> torch.Tensor:
    """Return sums over a micro-batch: loss, correct within 1, correct within 5, samples."""
    labels_N = torch.from_numpy(batch.labels).to(device, non_blocking=True)
    with autocast(recipe, device):
        logits_NC = net(to_input(batch.images, recipe, device)).float()
    loss = F.cross_entropy(logits_NC, labels_N, reduction="sum")
    best_NK = logits_NC.topk(min(5, logits_NC.shape[1])).indices
    hits_NK = best_NK == labels_N[:, None]
    row = [loss, hits_NK[:, 0].sum(), hits_NK.sum(), torch.tensor(len(labels_N), device=device)]
    return torch.stack([r.double() for r in row]).cpu()

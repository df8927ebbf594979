"""Evaluation on all ranks, with exact counts: each held-out sample once, nothing padded, nothing counted twice."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from fgtrain import loader
from fgtrain.data import Sample
from fgtrain.optimizer import autocast
from fgtrain.place import Place, agree
from fgtrain.plan import share
from fgtrain.recipe import Recipe
from fgtrain.state import State
from fgtrain.tensors import to_input


@torch.no_grad()
def evaluate(recipe: Recipe, samples: tuple[Sample, ...], state: State, place: Place) -> dict[str, float]:
    """Return loss, top-1 and top-5 (shares of 1) and the number of samples, the same on every rank.

    Uses the moving average of the weights if there is one. Every rank fills in its micro-batches' rows of one table, so
    that the sums do not depend on the world size.
    """
    micro_batches = -(-len(samples) // recipe.evaluate.micro)
    mine = share(micro_batches, place.rank, place.size)
    table = torch.zeros(micro_batches, 4, dtype=torch.float64)
    state.net.eval()
    with state.ema.applied(state.net) if state.ema else nullcontext():
        batches = loader.evaluation_batches(recipe, samples, mine, pin=place.device.type == "cuda")
        for number, batch in zip(mine, batches, strict=True):
            table[number] = _measure(recipe, state.net, loader.checked(batch, recipe), place.device)
    loss, top1, top5, count = agree(table).sum(0).tolist()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count, "samples": int(count)}


def _measure(recipe: Recipe, net: torch.nn.Module, batch: loader.MicroBatch, device: torch.device) -> torch.Tensor:
    """Return sums over a micro-batch: loss, correct within 1, correct within 5, samples."""
    if not len(batch.labels):
        return torch.zeros(4, dtype=torch.float64)
    labels_N = torch.from_numpy(batch.labels).to(device, non_blocking=True)
    with autocast(recipe, device):
        logits_NC = net(to_input(batch.images, recipe, device)).float()
    loss = F.cross_entropy(logits_NC, labels_N, reduction="sum")
    best_NK = logits_NC.topk(min(5, logits_NC.shape[1])).indices
    hits_NK = best_NK == labels_N[:, None]
    row = [loss, hits_NK[:, 0].sum(), hits_NK.sum(), torch.tensor(len(labels_N), device=device)]
    return torch.stack([r.double() for r in row]).cpu()

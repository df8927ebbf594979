"""Mixup on the device: a micro-batch's pictures are blended in pairs, by a share that its key draws.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fgtrain.keyed import key
from fgtrain.recipe import Recipe


class Blend(NamedTuple):
    """Each sample keeps `share` of itself and takes the rest from the sample before it, the first from the last."""

    share: float


def drawn(recipe: Recipe, step: int, micro_batch: int) -> Blend | None:
    """Return how a micro-batch is blended, by its key; None where the recipe has no mixup."""
    if recipe.mixup is None:
        return None
    draw = random.Random(key("mixup", recipe.seed, step, micro_batch))
    return Blend(draw.betavariate(recipe.mixup.alpha, recipe.mixup.alpha))


def blended(x_NCHW: torch.Tensor, blend: Blend | None) -> torch.Tensor:
    """Blend normalised pictures; they keep their memory format, which `roll` does not on a GPU."""
    if blend is None:
        return x_NCHW
    before_NCHW = torch.cat((x_NCHW[-1:], x_NCHW[:-1]))
    return torch.lerp(before_NCHW, x_NCHW, blend.share)


def loss(logits_NC: torch.Tensor, labels_N: torch.Tensor, blend: Blend | None, smoothing: float) -> torch.Tensor:
    """Return the sum of the samples' cross-entropies, by the labels of both halves where there was a blend."""
    own = F.cross_entropy(logits_NC, labels_N, reduction="sum", label_smoothing=smoothing)
    if blend is None:
        return own
    other = F.cross_entropy(logits_NC, labels_N.roll(1), reduction="sum", label_smoothing=smoothing)
    return own * blend.share + other * (1 - blend.share)

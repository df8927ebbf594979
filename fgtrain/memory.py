"""What a rank needs in memory, by arithmetic on a model's sizes. Pure and light; `fgtrain.sizes` measures the sizes.

Parameters, gradients and moments are fp32 under every strategy. Bytes throughout. What the framework itself takes
(CUDA's context, NCCL's buffers, Python) comes on top.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from fgtrain.recipe import SGD, Recipe
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import BUCKET_ELEMENTS, LIVE_ELEMENTS, ZeRO

_ITEM = 4  # bytes of an fp32


class Sizes(msgspec.Struct, frozen=True):
    """A model's: elements that train, that are frozen, of the largest unit that FSDP gathers, and of what is left.

    `buffers` and `activations` in bytes: the latter is what backward needs of one micro-batch's forward pass.
    """

    trained: int
    frozen: int
    unit: int
    rest: int
    buffers: int
    activations: int


class Estimate(NamedTuple):
    """Bytes a rank needs, by what for. `working`: parameters and gradients that are there once more for a while."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """The peak: all of it at once."""
        return sum(self)


def estimate(sizes: Sizes, recipe: Recipe, world: int) -> Estimate:
    """Return what each of `world` ranks needs at the peak of a step: when a backward pass begins."""
    elements = sizes.trained + sizes.frozen
    weights, gradients = elements * _ITEM + sizes.buffers, sizes.trained * _ITEM
    moments = gradients * _slots(recipe)
    average = weights if recipe.ema else 0
    match recipe.strategy:
        case FSDP() if world > 1:
            shard = _share(elements * _ITEM, world) + sizes.buffers
            # The rest stays gathered between forward and backward of its own; a unit's parameters are there twice while
            # they are taken apart, and so are its gradients while they are summed.
            working = (sizes.rest + 4 * sizes.unit) * _ITEM
            spread = (shard, _share(gradients, world), _share(moments, world))
            return Estimate(*spread, shard if recipe.ema else 0, sizes.activations, working)
        case ZeRO(stage=stage):
            return _zero(stage, weights, gradients, moments, average, sizes.activations, world)
        case _:
            # What earlier micro-batches left is not in the buckets that the last one's exchange needs.
            buckets = gradients if world > 1 and recipe.batch.total > recipe.batch.micro * world else 0
            return Estimate(weights, gradients, moments, average, sizes.activations, buckets)


def _zero(
    stage: int, weights: int, gradients: int, moments: int, average: int, activations: int, world: int
) -> Estimate:
    """Parameters that train are there once more, as the pieces that the optimizer works on."""
    masters, optimizer = _share(gradients, world), _share(moments, world)
    bucket = min(2 * BUCKET_ELEMENTS * _ITEM, gradients)
    piece = _share(gradients, world)
    match stage:
        case 1:
            return Estimate(weights + masters, gradients, optimizer, average, activations, bucket)
        case 2:
            return Estimate(weights + masters, piece, optimizer, average, activations, bucket)
        case _:
            live = min(LIVE_ELEMENTS * _ITEM, weights)
            return Estimate(_share(weights, world) + masters, 2 * piece, optimizer, 0, activations, bucket + live)


def _slots(recipe: Recipe) -> int:
    """Return how many values an optimizer keeps for each parameter."""
    return int(recipe.optim.momentum > 0) if isinstance(recipe.optim, SGD) else 2


def _share(bytes_: int, world: int) -> int:
    return -(-bytes_ // world)


def spell(estimate: Estimate) -> str:
    """Write an estimate as one line."""
    parts = ", ".join(f"{name} {_mb(value)}" for name, value in zip(estimate._fields, estimate, strict=True) if value)
    return f"{_mb(estimate.total)} a rank: {parts}"


def _mb(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"

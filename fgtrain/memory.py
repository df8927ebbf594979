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


class Moment(NamedTuple):
    """Bytes alive at the worst moment of one micro-batch's pass, beside what a rank holds between passes.

    `activations` are tensors that the pass made, gradients on their way among them; `working` is what is gathered, and
    sent; `summed` counts the elements whose gradients have been summed by then.
    """

    activations: int
    working: int = 0
    summed: int = 0


class Sizes(msgspec.Struct, frozen=True):
    """A model's: elements that train, that are frozen, and of the largest unit that FSDP gathers; bytes of buffers.

    `moments`: the worst of a micro-batch's pass, one of each stretch in which no gradients are summed. Where a rank
    holds all parameters and gradients, that is one.
    """

    trained: int
    frozen: int
    unit: int
    buffers: int
    moments: tuple[Moment, ...]

    @property
    def activations(self) -> int:
        """The most that a pass takes, beside what is there between passes."""
        return max(m.activations + m.working for m in self.moments)


class Estimate(NamedTuple):
    """Bytes a rank needs, by what for. `working`: parameters and gradients that are there once more for a while.

    `host`: what `offload` keeps in host memory, which is in none of the others.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    working: int
    host: int = 0

    @property
    def total(self) -> int:
        """The peak on the rank's device: all of it at once."""
        return sum(self) - self.host

    def on(self, kind: str) -> int:
        """Return what has to fit the memory of a kind of device, such as "cuda": a CPU's is the host's."""
        return self.total + (self.host if kind == "cpu" else 0)


def estimate(sizes: Sizes, recipe: Recipe, world: int) -> Estimate:
    """Return what each of `world` ranks needs at the peak of a step: when a backward pass begins."""
    elements = sizes.trained + sizes.frozen
    weights, gradients = elements * _ITEM + sizes.buffers, sizes.trained * _ITEM
    moments = gradients * slots(recipe)
    average = weights if recipe.ema else 0
    match recipe.strategy:
        case FSDP(offload=offload) if world > 1 or offload:
            return _fsdp(offload, sizes, recipe, moments, world)
        case ZeRO() as zero:
            return _zero(zero, weights, gradients, moments, average, sizes.activations, world)
        case _:
            buckets = gradients if beside_buckets(recipe, world) else 0
            return Estimate(weights, gradients, moments, average, sizes.activations, buckets)


def _fsdp(offload: bool, sizes: Sizes, recipe: Recipe, moments: int, world: int) -> Estimate:
    """The worst of a pass: of gradients, there is what earlier micro-batches left, or what is summed by then."""
    shard = _share((sizes.trained + sizes.frozen) * _ITEM, world)
    average, optimizer = shard + sizes.buffers if recipe.ema else 0, _share(moments, world)
    accumulates = recipe.batch.total > recipe.batch.micro * world
    # A unit's rows are there once more: summed, before they are added to what is there, or copied to the host.
    added = _share(sizes.unit * _ITEM, world) if accumulates or offload else 0
    if offload:
        worst = max(sizes.moments, key=lambda m: m.activations + m.working)
        host = shard + _share(sizes.trained * _ITEM, world) + optimizer + average
        return Estimate(sizes.buffers, 0, 0, 0, worst.activations, worst.working + added, host)

    def at(moment: Moment) -> Estimate:
        gradients = _share((sizes.trained if accumulates else moment.summed) * _ITEM, world)
        shares = (shard + sizes.buffers, gradients, optimizer, average)
        return Estimate(*shares, moment.activations, moment.working + added)

    return max(map(at, sizes.moments), key=lambda e: e.total)


def _zero(
    strategy: ZeRO, weights: int, gradients: int, moments: int, average: int, activations: int, world: int
) -> Estimate:
    """Parameters that train are there once more, as the pieces that the optimizer works on."""
    piece, optimizer = _share(gradients, world), _share(moments, world)
    bucket = min(2 * BUCKET_ELEMENTS * _ITEM, gradients)
    live = min(LIVE_ELEMENTS * _ITEM, weights)
    match strategy:
        case ZeRO(stage=3, offload=True):
            host = _share(weights, world) + 3 * piece + optimizer
            return Estimate(0, 0, 0, 0, activations, bucket + live, host)
        case ZeRO(stage=3):
            return Estimate(_share(weights, world) + piece, 2 * piece, optimizer, 0, activations, bucket + live)
        case ZeRO(stage=stage, offload=True):
            # The pieces, their gradients, and what is updated of the weights on its way back to the device.
            left = gradients if stage == 1 else 0
            return Estimate(weights, left, 0, average, activations, bucket, 3 * piece + optimizer)
        case ZeRO(stage=stage):
            left = gradients if stage == 1 else piece
            return Estimate(weights + piece, left, optimizer, average, activations, bucket)


def beside_buckets(recipe: Recipe, world: int) -> bool:
    """Tell whether a rank that holds all gradients holds them twice: added up, and in the buckets that are exchanged.

    DDP's gradients are views of its buckets, but those that earlier micro-batches left are not.
    """
    return world > 1 and (recipe.determinism == "bits" or recipe.batch.total > recipe.batch.micro * world)


def slots(recipe: Recipe) -> int:
    """Return how many values an optimizer keeps for each parameter."""
    return int(recipe.optim.momentum > 0) if isinstance(recipe.optim, SGD) else 2


def _share(bytes_: int, world: int) -> int:
    return -(-bytes_ // world)


def spell(estimate: Estimate) -> str:
    """Write an estimate as one line."""
    each = {name: value for name, value in estimate._asdict().items() if value and name != "host"}
    parts = ", ".join(f"{name} {_mb(value)}" for name, value in each.items())
    host = f"; offloaded to the host {_mb(estimate.host)}" if estimate.host else ""
    return f"{_mb(estimate.total)} a rank: {parts}{host}"


def _mb(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.1f} MB"

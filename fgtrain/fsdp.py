"""FSDP2: parameters are gathered for each pass, and gradients are summed onto the rank that keeps their rows.

Gradients are summed after every micro-batch, so that no rank ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from fgtrain.build import build_net
from fgtrain.compiled import compile_in_place
from fgtrain.ema import MovingAverage
from fgtrain.errors import UserError
from fgtrain.optimizer import build_optimizer, build_scaler, computes_in
from fgtrain.place import Place, ensure_group
from fgtrain.recipe import Recipe, replace
from fgtrain.reduction import Mailed
from fgtrain.state import State
from fgtrain.strategies.fsdp import FSDP

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ShardedState(State):
    """A state of which each rank holds a share of every parameter."""

    lockstep = True
    whole = False


class FullySharded(Mailed):
    """Accumulates in the shards themselves."""

    collective = True
    compiled = True

    def __init__(self, recipe: Recipe, state: State, place: Place) -> None:
        super().__init__(recipe, state)
        self.net = state.net
        self.loss_scale = float(place.size)  # FSDP takes the mean over ranks where the step needs the sum

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Sum the gradients of what runs inside over ranks."""
        yield
        self.end_micro_batch(filled=filled)


def build_sharded(strategy: FSDP, recipe: Recipe, place: Place) -> ShardedState:
    """Make the state that a run starts from; all ranks call together.

    Weights lie in C order, as shards are runs of it; with `channels_last`, activations still lie so.

    With `compile`, blocks are compiled one by one: no kernels can be made across the gathering of parameters.

    Raises:
        UserError: `precision=auto` turned out to be fp32, and parameters should be gathered as bf16; or the network
            has no blocks to compile, or parameters that cannot be sharded.
    """
    gathers = gathers_as(strategy, recipe, place.device)
    ensure_group(place)
    net = build_net(replace(recipe, channels_last=False), place.device)
    refuse_numbers(net)
    sharded = units(net, strategy.unit)
    if recipe.compile:
        blocks = apart(net, sharded)
        if not blocks:
            raise UserError("compile=true: strategy=fsdp compiles blocks, and the model has none: --set compile=false")
        compile_in_place(blocks)
    shard(net, sharded, strategy, gathers, place)
    ema = MovingAverage(net, recipe.ema.decay) if recipe.ema else None
    return ShardedState(net, build_optimizer(recipe, net), build_scaler(recipe, place.device), ema)


def gathers_as(strategy: FSDP, recipe: Recipe, device: torch.device) -> torch.dtype:
    """Return the type that parameters are gathered as.

    Raises:
        UserError: it is bf16 where the network computes in fp32, which takes no bf16 parameters.
    """
    computes = computes_in(recipe, device)
    if strategy.param_dtype == "bf16" and computes == torch.float32:
        raise UserError(
            f"strategy.param_dtype=bf16: precision={recipe.precision} is fp32 on this device ({device.type}):"
            " --set precision=bf16, or --set strategy.param_dtype=null"
        )
    return gathered_dtype(strategy, computes)


def shard(net: nn.Module, blocks: list[nn.Module], strategy: FSDP, dtype: torch.dtype, place: Place) -> None:
    """Spread a network over all ranks, `blocks` one by one, inner ones first; parameters are gathered as `dtype`."""
    offloads = strategy.offload and place.device.type == "cuda"
    options: dict[str, Any] = {
        "reshard_after_forward": True,  # the outermost too: between passes, parameters are their shards
        "offload_policy": CPUOffloadPolicy() if offloads else OffloadPolicy(),
    }
    reduce_dtype = DTYPES[strategy.reduce_dtype]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    if norms := exact_norms(net, dtype):
        exact = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)  # statistics are fp32
        fully_shard(norms, mp_policy=exact, **options)
    for unit in blocks:
        fully_shard(unit, mp_policy=policy, **options)
    fully_shard(net, mp_policy=policy, **options)


def refuse_numbers(net: nn.Module) -> None:
    """Refuse a network that `fully_shard` cannot shard.

    Raises:
        UserError: it has parameters that are single numbers, of shape ().
    """
    found = [name for name, p in net.named_parameters() if p.dim() == 0]
    if found:
        raise UserError(
            f"strategy=fsdp: the model has parameters that are single numbers, which FSDP does not shard ({found[0]}"
            f"{f' and {len(found) - 1} more' if found[1:] else ''}): --strategy ddp, or zero1 to zero3"
        )


def gathered_dtype(strategy: FSDP, computes_in: torch.dtype) -> torch.dtype:
    """Return the type that parameters are gathered as, where the network computes in `computes_in`."""
    return DTYPES[strategy.param_dtype] if strategy.param_dtype else computes_in


def exact_norms(net: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """Return the layers whose parameters are gathered as fp32, where the others are gathered as `dtype`."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm)] if dtype != torch.float32 else []


def units(net: nn.Module, smallest: int) -> list[nn.Module]:
    """Return the blocks that are gathered one by one, inner ones first.

    They are members of a sequence or list, have parts of their own, and at least `smallest` parameters.
    """
    found = []
    for parent in net.modules():
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            for block in parent.children():
                composed = next(block.children(), None) is not None and not isinstance(block, nn.ModuleList)
                if composed and sum(p.numel() for p in block.parameters()) >= smallest:
                    found.append(block)
    return list(dict.fromkeys(reversed(found)))  # `modules` yields outer ones first


def apart(net: nn.Module, sharded: list[nn.Module]) -> list[nn.Module]:
    """Return the largest blocks, of any size, within which nothing is gathered, so that each is compiled whole."""
    found: list[nn.Module] = []
    for block in reversed(units(net, 0)):
        within = {m for m in block.modules() if m is not block}
        if within.isdisjoint(sharded) and not any(block in outer.modules() for outer in found):
            found.append(block)
    return found

"""Torch optimizers and scalers from recipe parts."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from fgtrain.recipe import SGD, Adam, AdamW, Recipe


def build_optimizer(recipe: Recipe, net: torch.nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe over the parameters that train.

    Fused: one pass over the state where torch's default makes several. The fused kernels of CPUs take parameters,
    gradients and state to lie in memory alike, unchecked; whoever puts a tensor among them must see to it.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    match recipe.optim:
        case SGD() as o:
            sharded = any(isinstance(p, DTensor) for p in parameters)  # for which torch 2.13 has no fused SGD
            sgd = torch.optim.SGD(
                parameters,
                o.lr,
                momentum=o.momentum,
                nesterov=o.nesterov,
                weight_decay=o.weight_decay,
                fused=None if sharded else True,
            )
            if o.momentum and recipe.precision == "fp16":  # else a first step that overflows leaves them unwritten
                sgd.state |= {p: {"momentum_buffer": torch.zeros_like(p, requires_grad=False)} for p in parameters}
            return sgd
        case Adam() as o:
            return torch.optim.Adam(parameters, o.lr, o.betas, o.eps, o.weight_decay, fused=True)
        case AdamW() as o:
            return torch.optim.AdamW(parameters, o.lr, o.betas, o.eps, o.weight_decay, fused=True)


def computes_in(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Return the type that a recipe's network computes in: with "auto", bf16 on GPUs that have it, else fp32.

    GPUs that only emulate bf16, before NVIDIA's Ampere, would be slower with it.
    """
    if recipe.precision == "auto":
        has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]


def build_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Make the loss scaler; it does nothing unless the recipe computes in fp16.

    Torch makes its tensors when it scales a first loss. They are made here: a rank may have none in its first step, and
    takes the update all the same.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    scaler.scale(torch.zeros((), device=device))
    return scaler


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which the network runs forward."""
    dtype = computes_in(recipe, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

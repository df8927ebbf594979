"""Torch optimizers and scalers from recipe parts."""

from __future__ import annotations

import torch

from fgtrain.recipe import SGD, Adam, AdamW, Recipe


def build_optimizer(recipe: Recipe, net: torch.nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe over the parameters that train."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    match recipe.optim:
        case SGD() as o:
            return torch.optim.SGD(
                parameters, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay
            )
        case Adam() as o:
            return torch.optim.Adam(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
        case AdamW() as o:
            return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)


def build_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Make the loss scaler; it does nothing unless the recipe computes in fp16."""
    return torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which the network runs forward."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=recipe.precision != "fp32")

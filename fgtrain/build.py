"""What a run starts from: a function of the recipe alone, before any strategy spreads it over ranks."""

from __future__ import annotations

import torch

from fgtrain.checkpointing import checkpoint
from fgtrain.ema import MovingAverage
from fgtrain.keyed import key
from fgtrain.optimizer import build_optimizer, build_scaler
from fgtrain.recipe import Recipe
from fgtrain.state import State


def build_net(recipe: Recipe, device: torch.device) -> torch.nn.Module:
    """Make the network, with the weights that every rank of every world begins with."""
    torch.manual_seed(key("weights", recipe.seed))
    net = recipe.model.build().to(device)
    if recipe.checkpointing:
        checkpoint(net, f"model.name={recipe.model.name}")
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def build_state(recipe: Recipe, device: torch.device) -> State:
    """Make the state of a rank that holds all of it."""
    net = build_net(recipe, device)
    ema = MovingAverage(net, recipe.ema.decay) if recipe.ema else None
    return State(net, build_optimizer(recipe, net), build_scaler(recipe, device), ema)

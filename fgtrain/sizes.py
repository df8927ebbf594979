"""A model's sizes, found without memory for it: `python -m fgtrain.sizes < recipe.json` prints them as JSON.

The network is built of tensors without contents, and runs one micro-batch forward; autograd says what it keeps.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fgtrain.fsdp import units
from fgtrain.memory import Sizes
from fgtrain.models import Model
from fgtrain.optimizer import autocast
from fgtrain.parts import from_json, to_json
from fgtrain.recipe import Recipe, replace
from fgtrain.strategies.fsdp import FSDP


def measure(recipe: Recipe) -> Sizes:
    """Return the sizes of a recipe's model and micro-batch."""
    strategy = recipe.strategy if isinstance(recipe.strategy, FSDP) else FSDP()
    with torch.device("meta"):
        net = _unfilled(recipe.model).build()
    with FakeTensorMode():
        _pretend(net)
        blocks = units(net, strategy.unit)
        counts = {p: p.numel() for p in net.parameters()}
        inside = {p for block in blocks for p in block.parameters()}
        return Sizes(
            trained=sum(n for p, n in counts.items() if p.requires_grad),
            frozen=sum(n for p, n in counts.items() if not p.requires_grad),
            unit=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
            rest=sum(n for p, n in counts.items() if p not in inside),
            buffers=sum(b.nbytes for b in net.buffers()),
            activations=_activations(net, recipe),
        )


def _pretend(net: torch.nn.Module) -> None:
    """Have tensors say that they are the CPU's, where each kind of kernel keeps for backward what it really does."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fresh = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
                module._parameters[name] = made.setdefault(p, fresh)  # type: ignore[assignment]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = made.setdefault(b, torch.empty(b.shape, dtype=b.dtype))


def _unfilled(model: Any) -> Model:
    """Return a model that is built without looking for weights."""
    empty = {"pretrained": False, "weights": None}
    unfilled: Model = replace(model, **{k: v for k, v in empty.items() if k in model.__struct_fields__})
    return unfilled


def _activations(net: torch.nn.Module, recipe: Recipe) -> int:
    """Return the bytes that autograd keeps of a micro-batch, beside the parameters; each storage counts once."""
    known = {t.untyped_storage()._cdata for t in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    side = recipe.data.crop
    images = torch.empty(recipe.batch.micro, 3, side, side)
    net.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(recipe, torch.device("cpu")):
        logits = net(images)
    del logits
    return sum(t.untyped_storage().nbytes() for number, t in kept.items() if number not in known)


def main() -> None:
    """Read a recipe and print its model's sizes."""
    sys.stdout.buffer.write(to_json(measure(from_json(sys.stdin.buffer.read(), Recipe))))


if __name__ == "__main__":
    main()

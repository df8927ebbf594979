"""A model's sizes, found without memory for it: `python -m fgtrain.sizes < recipe.json` prints them as JSON.

The network is built of tensors without contents, and runs one micro-batch forward and backward; what is alive meanwhile
is counted.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fgtrain.checkpointing import checkpoint
from fgtrain.errors import UserError
from fgtrain.freeze import train_mode
from fgtrain.fsdp import units
from fgtrain.memory import Sizes
from fgtrain.models import Model
from fgtrain.optimizer import computes_in
from fgtrain.parts import from_json, to_json
from fgtrain.recipe import Recipe, replace
from fgtrain.strategies.fsdp import FSDP

_CPU = torch.device("cpu")


def measure(recipe: Recipe, device: torch.device = _CPU) -> Sizes:
    """Return the sizes of a recipe's model and micro-batch, as on `device`, which is not touched.

    Raises:
        UserError: the recipe asks for checkpointing, and the network has none.
        Exception: whatever the network raises that does not take such pictures.
    """
    strategy = recipe.strategy if isinstance(recipe.strategy, FSDP) else FSDP()
    net = _built(recipe)
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
            activations=_activations(net, recipe, computes_in(recipe, device)),
        )


def refuses_one(recipe: Recipe) -> bool:
    """Tell whether a recipe's network refuses to train on a single sample: BatchNorm that sees one value a channel."""
    net = _built(recipe)
    with FakeTensorMode():
        _pretend(net)
        train_mode(net)
        try:
            net(torch.empty(1, 3, recipe.data.crop, recipe.data.crop))
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):  # Source: torch.nn.functional.batch_norm
                raise
            return True
    return False


def _built(recipe: Recipe) -> torch.nn.Module:
    with torch.device("meta"):
        net = _unfilled(recipe.model).build()
    if recipe.checkpointing:
        checkpoint(net, f"model.name={getattr(recipe.model, 'name', '')}")
    return net


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


def _activations(net: torch.nn.Module, recipe: Recipe, dtype: torch.dtype) -> int:
    """Return the most bytes that a micro-batch takes on its way forward and back, beside parameters and gradients.

    Gradients are there, of earlier micro-batches. With checkpointing, that is the inputs of all blocks and the insides
    of the one that is computed anew.
    """
    for p in net.parameters():
        p.grad = torch.empty_like(p) if p.requires_grad else None
    state = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None)]
    side, micro = recipe.data.crop, recipe.batch.micro
    train_mode(net)
    with _Alive(state) as alive:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits_NC = net(torch.empty(micro, 3, side, side))
        labels_N = torch.zeros(micro, dtype=torch.int64)
        loss = F.cross_entropy(logits_NC.float(), labels_N, reduction="sum")
        del logits_NC
        loss.backward()  # type: ignore[no-untyped-call]
    most: int = alive.most
    return most


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are made while it is on, for as long as they live."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        """Leave out those of tensors that are there already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage()._cdata for t in known}
        self._bytes = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and take in what it returns."""
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._take, out)
        return out

    def _take(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self._known:
            self._known.add(number)
            self._bytes += storage.nbytes()
            self.most = max(self.most, self._bytes)
            weakref.finalize(storage, self._gone, number, storage.nbytes())

    def _gone(self, number: int, bytes_: int) -> None:
        self._known.discard(number)
        self._bytes -= bytes_


def main() -> None:
    """Read a recipe and print its model's sizes."""
    try:
        sys.stdout.buffer.write(to_json(measure(from_json(sys.stdin.buffer.read(), Recipe))))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

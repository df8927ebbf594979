"""A model's sizes, found without memory for it: `python -m fgtrain.sizes < recipe.json` prints them as JSON.

The network is built of tensors without contents, and runs one micro-batch forward and backward; what is alive meanwhile
is counted.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fgtrain.checkpointing import checkpoint
from fgtrain.errors import UserError
from fgtrain.freeze import train_mode
from fgtrain.fsdp import DTYPES, exact_norms, gathered_dtype, refuse_numbers, units
from fgtrain.gathering import Gathering, grouped
from fgtrain.memory import Moment, Sizes
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
    net, dtype = built(recipe), computes_in(recipe, device)
    with FakeTensorMode():
        if isinstance(recipe.strategy, FSDP):
            return _sharded(net, recipe, recipe.strategy, dtype)
        _pretend(net)
        for p in net.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None  # of earlier micro-batches
        with _Alive(net) as alive:
            _pass(net, recipe, dtype)
        return _sizes(net, 0, alive)


def _sharded(net: torch.nn.Module, recipe: Recipe, strategy: FSDP, dtype: torch.dtype) -> Sizes:
    """Return the sizes where parameters are there only while they are needed, as the type that they are gathered as."""
    refuse_numbers(net)
    gathered, summed = gathered_dtype(strategy, dtype), DTYPES[strategy.reduce_dtype]
    exact = exact_norms(net, gathered)
    _pretend(net, gathered, {p for norm in exact for p in norm.parameters()})
    groups = grouped(net, units(net, strategy.unit), exact)
    with _Alive(net) as alive:
        gathering = Gathering(groups, summed.itemsize, alive)
        _pass(net, recipe, dtype)
        gathering.finish()
    return _sizes(net, max((g.elements for g in groups[:-1]), default=0), alive)


def _sizes(net: torch.nn.Module, unit: int, alive: _Alive) -> Sizes:
    return Sizes(
        trained=sum(p.numel() for p in net.parameters() if p.requires_grad),
        frozen=sum(p.numel() for p in net.parameters() if not p.requires_grad),
        unit=unit,
        buffers=sum(b.nbytes for b in net.buffers()),
        moments=tuple(alive.moments.values()),
    )


def refuses_one(recipe: Recipe) -> bool:
    """Tell whether a recipe's network refuses to train on a single sample: BatchNorm that sees one value a channel."""
    net = built(recipe)
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


def built(recipe: Recipe) -> torch.nn.Module:
    """Make a recipe's network of tensors without contents; weights are not looked for.

    Raises:
        UserError: as `Model.build`; or the recipe asks for checkpointing, and the network has none.
    """
    with torch.device("meta"):
        net = _unfilled(recipe.model).build()
    if recipe.checkpointing:
        checkpoint(net, f"model.name={getattr(recipe.model, 'name', '')}")
    return net


def _pretend(
    net: torch.nn.Module, dtype: torch.dtype = torch.float32, exact: Collection[torch.Tensor] = frozenset()
) -> None:
    """Have tensors say that they are the CPU's, where each kind of kernel keeps for backward what it really does.

    Parameters of fp32 become ones of `dtype`, but for `exact`.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                kind = dtype if p.dtype == torch.float32 and p not in exact else p.dtype
                fresh = torch.nn.Parameter(torch.empty(p.shape, dtype=kind), requires_grad=p.requires_grad)
                module._parameters[name] = made.setdefault(p, fresh)  # type: ignore[assignment]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = made.setdefault(b, torch.empty(b.shape, dtype=b.dtype))


def _unfilled(model: Any) -> Model:
    """Return a model that is built without looking for weights."""
    empty = {"pretrained": False, "weights": None}
    unfilled: Model = replace(model, **{k: v for k, v in empty.items() if k in model.__struct_fields__})
    return unfilled


def _pass(net: torch.nn.Module, recipe: Recipe, dtype: torch.dtype) -> None:
    """Take a micro-batch forward and back.

    With checkpointing, what is alive is the inputs of all blocks and the insides of the one that is computed anew.
    """
    side, micro = recipe.data.crop, recipe.batch.micro
    train_mode(net)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits_NC = net(torch.empty(micro, 3, side, side))
    labels_N = torch.zeros(micro, dtype=torch.int64)
    loss = F.cross_entropy(logits_NC.float(), labels_N, reduction="sum")
    del logits_NC
    loss.backward()  # type: ignore[no-untyped-call]


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are made while it is on, for as long as they live, and what else is held.

    `moments`: the most of it, for each number of elements whose gradients were summed until then.
    """

    def __init__(self, net: torch.nn.Module) -> None:
        """Leave out what a network has already."""
        super().__init__()  # type: ignore[no-untyped-call]
        state = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None)]
        self._known = {t.untyped_storage()._cdata for t in state}
        self._bytes = self._held = self._summed = 0
        self.moments: dict[int, Moment] = {}

    def hold(self, bytes_: int) -> None:
        """See `gathering.Ledger`."""
        self._held += bytes_
        self._note()

    def summed(self, elements: int) -> None:
        """See `gathering.Ledger`."""
        self._summed += elements
        self._note()

    def _note(self) -> None:
        now = Moment(self._bytes, self._held, self._summed)
        most = self.moments.setdefault(self._summed, now)
        if now.activations + now.working > most.activations + most.working:
            self.moments[self._summed] = now

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
            self._note()
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

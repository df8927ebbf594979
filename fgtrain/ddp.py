"""Gradients by DistributedDataParallel: a ring adds them in an order that depends on the world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fgtrain.place import Place
from fgtrain.recipe import Recipe
from fgtrain.reduction import Mailed
from fgtrain.state import State

# Newer torch has renamed the option, and warns of the old name.
_PARAMETERS = signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


class DataParallel(Mailed):
    """Each rank accumulates over its micro-batches; DDP averages over ranks during the last one's backward."""

    def __init__(self, recipe: Recipe, state: State, place: Place, mine: range) -> None:
        super().__init__(recipe, state)
        net = state.net
        self._place, self._whole = place, mine
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._under_way = False
        self._number: int | None = None
        self._arrived: set[torch.Tensor] = set()
        self._ddp: DistributedDataParallel | None = None
        if place.size > 1:
            self._ddp = DistributedDataParallel(
                _OrNothing(net, self._parameters),
                device_ids=[place.local_rank] if place.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,  # `Mailed` agrees on them once a step
            )
            self._watch()
        self.net: torch.nn.Module = self._ddp or net
        self.divide(1)
        self.collective = place.size > 1
        self.loss_scale = float(place.size)  # DDP takes the mean over ranks where the step needs the sum

    def divide(self, parts: int) -> None:
        """See `Reduction`."""
        self._last = self._whole.stop * parts - 1

    def begin_step(self) -> None:
        """Forget the last step."""
        super().begin_step()
        self._under_way = False
        self._arrived.clear()

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Accumulate the gradients of what runs inside; only the rank's last micro-batch exchanges them."""
        self._number = number
        with self._ddp.no_sync() if self._ddp and number != self._last else nullcontext():
            yield
        self.end_micro_batch(filled=filled)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Reduction`."""
        self._under_way = self._number == self._last
        super().backward(loss)

    # -- out of memory --------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """See `Reduction`.

        DDP exchanges in the backward pass of the last micro-batch. If that was under way, it has seen some gradients,
        and is shown the others; if not, it is taken through a pass of its own that runs nothing.
        """
        self._norms.go_back()
        if self._ddp is None:
            return
        if self._under_way:
            left = [p for p in self._parameters if p not in self._arrived]
            if left:
                nothing(left).backward()  # type: ignore[no-untyped-call]
        else:
            self._ddp(None).backward()

    def _watch(self) -> None:
        """Note which gradients the exchange of a step has seen."""

        def arrived(parameter: torch.Tensor) -> None:
            if self._under_way:
                self._arrived.add(parameter)

        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]


class _OrNothing(torch.nn.Module):
    """A network that, given nothing, returns a loss of zero that reaches every parameter and costs no memory."""

    def __init__(self, net: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.net, self._trained = net, parameters

    def forward(self, images: torch.Tensor | None) -> torch.Tensor:
        """Run the network, or nothing."""
        if images is None:
            return nothing(self._trained)
        out: torch.Tensor = self.net(images)
        return out


def nothing(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Return a zero with a gradient of zero for each of some parameters, the last one first, as a network has it."""
    return torch.stack([p.sum().float() * 0 for p in parameters]).sum()

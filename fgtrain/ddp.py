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
        self._place, self._last = place, mine[-1]
        self._ddp: DistributedDataParallel | None = None
        if place.size > 1:
            self._ddp = DistributedDataParallel(
                net,
                device_ids=[place.local_rank] if place.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,  # `Mailed` agrees on them once a step
            )
        self.net: torch.nn.Module = self._ddp or net
        self.collective = place.size > 1
        self.loss_scale = float(place.size)  # DDP takes the mean over ranks where the step needs the sum

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Accumulate the gradients of what runs inside; only the rank's last micro-batch exchanges them."""
        with self._ddp.no_sync() if self._ddp and number != self._last else nullcontext():
            yield
        self.end_micro_batch(filled=filled)

"""Gradients by DistributedDataParallel: a ring adds them in an order that depends on the world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fgtrain.batchnorm import RunningStatistics
from fgtrain.place import Place, agreeing
from fgtrain.recipe import Recipe
from fgtrain.reduction import Applied
from fgtrain.state import State

# Newer torch has renamed the option, and warns of the old name.
_PARAMETERS = signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


class DataParallel(Applied):
    """Each rank accumulates over its micro-batches; DDP averages over ranks during the last one's backward."""

    lockstep = False

    def __init__(self, recipe: Recipe, state: State, place: Place, mine: range) -> None:
        super().__init__(recipe, state)
        net = state.net
        self._place, self._last = place, mine[-1]
        self._norms = RunningStatistics(net)
        self._filled = 0
        self._ddp: DistributedDataParallel | None = None
        if place.size > 1:
            self._ddp = DistributedDataParallel(
                net,
                device_ids=[place.local_rank] if place.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,  # RunningStatistics agrees on them once a step
            )
        self.net: torch.nn.Module = self._ddp or net
        self.collective = place.size > 1
        self.loss_scale = float(place.size)  # DDP takes the mean over ranks where the step needs the sum

    def begin_step(self) -> None:
        """Forget the last step."""
        super().begin_step()
        self._filled = 0
        self._norms.begin_step()

    @contextmanager
    def micro_batch(self, number: int | None, *, filled: bool) -> Iterator[None]:
        """Accumulate the gradients of what runs inside; only the rank's last micro-batch exchanges them."""
        with self._ddp.no_sync() if self._ddp and number != self._last else nullcontext():
            yield
        self._filled += filled
        self._norms.end_micro_batch(float(filled))

    def exchange(self, mail: torch.Tensor) -> None:
        """Begin to sum `mail`, and the statistics with it; gradients are there already."""
        filled = torch.tensor([float(self._filled)], device=mail.device)
        self._sums = torch.cat([filled, mail, self._norms.flat_sum()])
        self._mail_length = len(mail)
        self._arrived = agreeing(self._sums)

    def end_step(self) -> torch.Tensor:
        """Set the running statistics and return the sum of the mail."""
        self._arrived()
        end = 1 + self._mail_length
        self._norms.end_step(self._sums[end:], float(self._sums[0]))
        return self._sums[1:end]

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

# Newer torch has renamed the option, and warns of the old name.
_PARAMETERS = signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


class DataParallel:
    """Each rank accumulates over its micro-batches; DDP averages over ranks during the last one's backward."""

    def __init__(self, net: torch.nn.Module, place: Place, mine: range) -> None:
        self._place, self._whole = place, mine
        self._norms = RunningStatistics(net)
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._filled, self._number, self._under_way = 0, -1, False
        self._arrived: set[torch.Tensor] = set()
        self._ddp: DistributedDataParallel | None = None
        if place.size > 1:
            self._ddp = DistributedDataParallel(
                _OrNothing(net, self._parameters),
                device_ids=[place.local_rank] if place.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,  # RunningStatistics agrees on them once a step
            )
            self._watch(self._ddp)
        self.net: torch.nn.Module = self._ddp or net
        self.divide(1)
        self.collective = place.size > 1
        self.loss_scale = float(place.size)  # DDP takes the mean over ranks where the step needs the sum

    def divide(self, parts: int) -> None:
        """See `Reduction`."""
        self._last = self._whole.stop * parts - 1

    def begin_step(self) -> None:
        """Forget the last step."""
        self._filled = 0
        self._norms.begin_step()
        self._number, self._under_way = -1, False
        self._arrived.clear()

    @contextmanager
    def micro_batch(self, number: int, *, filled: bool) -> Iterator[None]:
        """Accumulate the gradients of what runs inside; only the rank's last micro-batch exchanges them."""
        self._number = number
        with self._ddp.no_sync() if self._ddp and number != self._last else nullcontext():
            yield
        self._filled += filled
        self._norms.end_micro_batch(float(filled))

    def exchange(self, words: torch.Tensor, mail: torch.Tensor) -> torch.Tensor:
        """Sum `words`, and begin to sum `mail` and the statistics; gradients are there already."""
        words = torch.cat([torch.tensor([float(self._filled)]), words])
        sums = torch.cat([mail, self._norms.flat_sum()])
        if sums.device.type == "cpu":  # then one message does
            both = torch.cat([words, sums])
            agreeing(both)()
            words, sums = both[: len(words)], both[len(words) :]
            self._sent = lambda: None
        else:  # hosts agree while their devices are at work
            heard = agreeing(words)
            self._sent = agreeing(sums)
            heard()
        self._all_filled, self._sums, self._mail_length = float(words[0]), sums, len(mail)
        return words[1:]

    def end_step(self) -> torch.Tensor:
        """Set the running statistics and return the sum of the mail."""
        self._sent()
        self._norms.end_step(self._sums[self._mail_length :], self._all_filled)
        return self._sums[: self._mail_length]

    # -- out of memory --------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Give up this rank's part: put statistics back, and take part in the exchange with zeros, as the others wait.

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

    def drop_step(self) -> None:
        """Let what was exchanged go; nothing of it is set."""
        self._sent()

    def _watch(self, ddp: DistributedDataParallel) -> None:
        """Note when the exchange of a step is under way, and which gradients it has seen."""

        def prepared(*_: Any) -> None:
            self._under_way = self._number == self._last

        def arrived(parameter: torch.Tensor) -> None:
            if self._under_way:
                self._arrived.add(parameter)

        ddp.register_forward_hook(prepared)
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

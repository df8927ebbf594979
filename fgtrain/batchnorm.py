"""BatchNorm whose running statistics do not depend on who computed which micro-batch.

Every micro-batch of a step starts from the same running statistics; the step's result is the mean over its
micro-batches of where each of them would have led. So one process and eight agree.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fgtrain.checkpointing import is_checkpointed


class RunningStatistics:
    """The running statistics of a network's BatchNorm layers that are not frozen: the buffers `live`."""

    def __init__(self, net: torch.nn.Module) -> None:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        norms = [m for m in norms if not (m.affine and not m.weight.requires_grad)]
        self.live = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        self._counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        sizes = [b.numel() for b in self.live]
        device = self.live[0].device if self.live else None  # parameters may be elsewhere: offloaded
        self._flat_sum = torch.zeros(sum(sizes), device=device)
        self._sum = [s.view_as(b) for s, b in zip(torch.split(self._flat_sum, sizes), self.live, strict=True)]
        self._start = [b.clone() for b in self.live]
        self._counts = [c.clone() for c in self._counters]
        self._led: list[torch.Tensor] | None = None
        if self.live and is_checkpointed(net):
            net.register_forward_hook(self._forward_done)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember where the step starts."""
        if self.live:
            torch._foreach_copy_(self._start, self.live)
            self._flat_sum.zero_()
            torch._foreach_copy_(self._counts, self._counters)

    @torch.no_grad()
    def end_micro_batch(self, weight: float) -> None:
        """Take in where this micro-batch led (`weight` 0: a stand-in without samples) and go back to the start."""
        if self.live:
            torch._foreach_add_(self._sum, self._led or self.live, alpha=weight)
            self.go_back()

    @torch.no_grad()
    def take(self) -> list[torch.Tensor]:
        """Return where this micro-batch led and go back to the start: what `end_micro_batch` adds up, by itself."""
        led = self._led or [b.clone() for b in self.live]
        if self.live:
            self.go_back()
        return led

    @torch.no_grad()
    def go_back(self) -> None:
        """Put everything as it was when the step began."""
        self._led = None
        if not self.live:
            return
        torch._foreach_copy_(self.live, self._start)
        torch._foreach_copy_(self._counters, self._counts)  # layers without momentum divide by them

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward_done(self, net: torch.nn.Module, *_: object) -> None:
        """Keep where forward led: with activation checkpointing, backward runs layers again, which moves them on."""
        if net.training:
            self._led = [b.detach().clone() for b in self.live]

    def flat_sum(self) -> torch.Tensor:
        """Return the sum over this rank's micro-batches, flat; not a copy."""
        return self._flat_sum

    @torch.no_grad()
    def end_step(self, flat_sum: torch.Tensor, micro_batches: float) -> None:
        """Set the running statistics to the mean over all ranks' micro-batches; if there were none, nothing changes."""
        if self.live and micro_batches:
            torch.div(flat_sum, micro_batches, out=self._flat_sum)
            torch._foreach_copy_(self.live, self._sum)
            torch._foreach_add_(self._counters, 1)

"""Reduction: how the gradients of all micro-batches, wherever they are computed, become the gradient of a step.

Each strategy (`fgtrain.strategies`) has its own; `Stepper` knows only what is here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from fgtrain.batchnorm import RunningStatistics
from fgtrain.place import agreeing
from fgtrain.recipe import Recipe
from fgtrain.state import State


class Reduction(Protocol):
    """Sums gradients and BatchNorm statistics over the micro-batches of a step, and applies them.

    Attributes:
        net: what to run forward.
        compiled: whether parts of it are, where the recipe says so; if not, it is yet to be compiled, as a whole.
        collective: whether a backward pass involves all ranks, so that a micro-batch without samples needs a stand-in.
        loss_scale: what a micro-batch's share of the step's loss is multiplied by before its backward pass.
    """

    net: torch.nn.Module
    compiled: bool
    collective: bool
    loss_scale: float

    def divide(self, parts: int) -> None:
        """From the next step on, each of the recipe's micro-batches is computed as `parts` micro-batches."""

    def begin_step(self) -> None:
        """Forget the last step and its gradients."""

    def micro_batch(self, number: int | None, *, filled: bool) -> AbstractContextManager[None]:
        """Take in one of this rank's micro-batches, whose forward and backward run inside.

        Args:
            number: which, in [0, micro-batches of a step); they come in order. None: none, after the last, to keep in
                step with other ranks.
            filled: whether it has samples. If not, it counts for nothing, whatever ran inside.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Run backward from the loss of the micro-batch inside which this is called."""

    def exchange(self, mail: torch.Tensor) -> None:
        """See to it that the step's gradients are there to be applied; nothing else of the network changes.

        `mail`, flat fp32 on the rank's device, is a few values that ride along and may go on travelling.
        """

    def update(self, lr: float) -> None:
        """Apply the gradients, clipped as the recipe says."""

    def end_step(self) -> torch.Tensor:
        """Set the step's statistics and return the sum of `mail` over ranks, on the device."""

    def abandon(self) -> None:
        """This rank ran out of memory in a micro-batch of this step, which is void; `exchange` comes next.

        Statistics are as when the step began, and the other ranks, who do not know yet, get what they wait for. Not
        called where ranks go in lockstep: nobody could get what it waits for.
        """

    def drop_step(self) -> None:
        """In place of `update` and `end_step`, on all ranks, where one of them had to abandon the step."""


class Applied:
    """The part of a reduction that is torch's own: gradients lie in `.grad`, and an optimizer takes them from there."""

    compiled = False

    def __init__(self, recipe: Recipe, state: State) -> None:
        self._recipe, self._state = recipe, state

    def begin_step(self) -> None:
        """Forget the last step's gradients."""
        self._state.optimizer.zero_grad(set_to_none=True)

    def divide(self, parts: int) -> None:
        """See `Reduction`; for those to whom one micro-batch is as another."""

    def abandon(self) -> None:
        """See `Reduction`."""
        raise AssertionError("this strategy goes in lockstep: nothing of it can be abandoned")

    def backward(self, loss: torch.Tensor) -> None:
        """See `Reduction`."""
        self._state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, lr: float) -> None:
        """See `Reduction`."""
        state, clip_norm = self._state, self._recipe.clip_norm
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        if all(p.grad is None for group in state.optimizer.param_groups for p in group["params"]):
            return  # no picture of the step could be read; a scaler that has checked no gradient refuses to go on
        if clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.net.parameters(), clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()


class Mailed(Applied):
    """... whose mail, and BatchNorm's statistics with it, is summed by one all-reduce beside the gradients."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        super().__init__(recipe, state)
        self._norms = RunningStatistics(state.net)
        self._filled = 0

    def begin_step(self) -> None:
        """Forget the last step."""
        super().begin_step()
        self.begin_mail()

    def begin_mail(self) -> None:
        """Forget the last step's mail and statistics."""
        self._filled = 0
        self._norms.begin_step()

    def end_micro_batch(self, *, filled: bool) -> None:
        """Take in the statistics of a micro-batch, if it had samples."""
        self._filled += filled
        self._norms.end_micro_batch(float(filled))

    def exchange(self, mail: torch.Tensor) -> None:
        """Begin to sum `mail`, and the statistics with it; gradients are there already."""
        filled = torch.tensor([float(self._filled)])
        statistics = self._norms.flat_sum().to(mail.device)  # of a network without BatchNorm they lie nowhere
        self._sums, self._mail_length = torch.cat([mail, statistics]), len(mail)
        if mail.device.type == "cpu":  # then one message does
            self._sums = torch.cat([self._sums, filled])
            self._all_filled = self._sums[-1:]
            self._waits = [agreeing(self._sums)]
        else:  # hosts agree on theirs while their devices are at work: what is read from a device is waited for
            self._all_filled = filled
            self._waits = [agreeing(filled), agreeing(self._sums)]

    def end_step(self) -> torch.Tensor:
        """Set the running statistics and return the sum of the mail."""
        self.drop_step()
        end = self._mail_length + len(self._norms.flat_sum())
        self._norms.end_step(self._sums[self._mail_length : end], self._all_filled.item())
        return self._sums[: self._mail_length]

    def drop_step(self) -> None:
        """See `Reduction`: only wait for what was sent."""
        for wait in self._waits:
            wait()

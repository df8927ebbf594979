"""Reduction: how the gradients of all micro-batches, wherever they are computed, become the gradient of a step.

One strategy a file; `Stepper` knows only what is here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from fgtrain.bits import FixedTree
from fgtrain.ddp import DataParallel
from fgtrain.place import Place
from fgtrain.plan import Plan, share
from fgtrain.recipe import Recipe


class Reduction(Protocol):
    """Sums gradients and BatchNorm statistics over the micro-batches of a step.

    Attributes:
        net: what to run forward.
        collective: whether a backward pass involves all ranks, so that a micro-batch without samples needs a stand-in.
        loss_scale: what a micro-batch's share of the step's loss is multiplied by before its backward pass.
    """

    net: torch.nn.Module
    collective: bool
    loss_scale: float

    def divide(self, parts: int) -> None:
        """From the next step on, each of the recipe's micro-batches is computed as `parts` micro-batches."""

    def begin_step(self) -> None:
        """Forget the last step; gradients are None."""

    def micro_batch(self, number: int, *, filled: bool) -> AbstractContextManager[None]:
        """Take in one of this rank's micro-batches, whose forward and backward run inside.

        Args:
            number: which, in [0, micro-batches of a step); they come in order.
            filled: whether it has samples. If not, it counts for nothing, whatever ran inside.
        """

    def exchange(self, words: torch.Tensor, mail: torch.Tensor) -> torch.Tensor:
        """Leave the step's gradients in `.grad`, the same on every rank; nothing else of the network changes.

        Args:
            words: flat fp32 on the CPU: what the hosts must know before the update.
            mail: flat fp32 on the rank's device: a few values that ride along and may go on travelling.

        Returns:
            The sum of `words` over ranks, without waiting for a device where that can be helped.
        """

    def end_step(self) -> torch.Tensor:
        """Set the step's statistics and return the sum of `mail` over ranks, on the device."""

    def abandon(self) -> None:
        """This rank ran out of memory in a micro-batch of this step, which is void; `exchange` comes next.

        Statistics are as when the step began, and the other ranks, who do not know yet, get what they wait for.
        """

    def drop_step(self) -> None:
        """In place of `end_step`, on all ranks, where one of them had to abandon the step."""


def build_reduction(recipe: Recipe, plan: Plan, place: Place, net: torch.nn.Module) -> Reduction:
    """Make the strategy of a recipe; all ranks call together."""
    shares = [share(plan.micro_batches, rank, place.size) for rank in range(place.size)]
    match recipe.determinism:
        case "samples":
            return DataParallel(net, place, shares[place.rank])
        case "bits":
            return FixedTree(net, place, shares)

"""Micro-batches of a single sample, and BatchNorm that refuses one: it sees one value a channel, which has no spread.

The run's last step may leave such a micro-batch, or pictures that cannot be read. It is normalised by the running
statistics, as a frozen layer would do it; they are those that the step began with, so nobody's place in the world
matters. A recipe whose every micro-batch is like that is refused, and out of memory ends above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fgtrain.errors import UserError
from fgtrain.plan import Plan
from fgtrain.recipe import Recipe
from fgtrain.sizes import refuses_one


@cache
def refuses(recipe: Recipe) -> bool:
    """Tell whether a recipe's network refuses to train on a single sample; the first time, that takes seconds."""
    with suppress(Exception):  # a network that cannot be looked at will say so itself
        return refuses_one(recipe)
    return False


def check(recipe: Recipe, plan: Plan) -> None:
    """See to it that a run's micro-batches are such that its network takes them.

    Raises:
        UserError: it does not.
    """
    if plan.micro == 1 and refuses(recipe):
        raise UserError(
            "batch.micro=1: BatchNorm layers of the model see one value a channel, and cannot train on that:"
            " --set batch.micro=2, or a larger data.crop"
        )


@contextmanager
def as_if_frozen(net: torch.nn.Module) -> Iterator[None]:
    """Have BatchNorm use its running statistics for the length of a `with`: a forward and a backward pass."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True

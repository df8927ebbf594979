"""What FSDP gathers and sums in one pass, followed on tensors without contents: no ranks, no messages, only bytes.

Which parameters are gathered together is the affair of `fgtrain.fsdp`; here is when they are there. Forward, a group is
gathered as its block begins, into one piece of memory that is kept until the next group is there, and parameters are
copied out of it; they go as the block ends. Backward, a group is gathered as the gradient of its block's output comes,
and the one before it is sent for. Once all gradients of a block are there, its parameters go, and its gradients are
copied to what is summed, which is kept until the next group's are. What is in no block is there all the time.

Source: torch 2.13, torch/distributed/fsdp/_fully_shard: FSDPParamGroup, foreach_all_gather and foreach_reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


class Ledger(Protocol):
    """Counts bytes beside those of the tensors that are alive, and the elements whose gradients are summed."""

    def hold(self, bytes_: int) -> None:
        """Count so many bytes more; fewer, if negative."""

    def summed(self, elements: int) -> None:
        """The gradients of so many elements more are summed, and lie where they are kept."""


class Group:
    """Parameters that are gathered together, of the type that they are gathered as. The last group is the rest's."""

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self.module, self.parameters = module, parameters
        self.elements = sum(p.numel() for p in parameters)
        self.bytes_ = sum(p.nbytes for p in parameters)
        self.trained = [p for p in parameters if p.requires_grad]
        self.missing = 0  # gradients that are still to come
        self.there = self.fetched = False


def grouped(net: nn.Module, blocks: Sequence[nn.Module], exact: Sequence[nn.Module]) -> list[Group]:
    """Return a network's groups: of each block, inner ones first, what no other has, and of the network what is left.

    Parameters of `exact`, which keep their type, count as left: they stay gathered about as long.
    """
    taken = {p for module in exact for p in module.parameters()}
    groups = []
    for block in blocks:
        groups.append(Group(block, [p for p in block.parameters() if p not in taken]))
        taken.update(groups[-1].parameters)
    inside = {p for group in groups for p in group.parameters}
    return [*groups, Group(net, [p for p in net.parameters() if p not in inside])]


class Gathering:
    """One forward and one backward pass of a network of which no rank holds all."""

    def __init__(self, groups: Sequence[Group], reduce_bytes: int, ledger: Ledger) -> None:
        """Follow a network from its next pass on; `reduce_bytes` is an element's of a gradient, as it is summed."""
        self._groups, self._reduce_bytes, self._ledger = groups, reduce_bytes, ledger
        self._order: list[Group] = []  # as they ended, forward
        self._copied = self._sent = 0  # what the last parameters were copied from, and the last gradients to
        self._backward = False
        for group in groups:
            group.module.register_forward_pre_hook(partial(self._begin, group))
            group.module.register_forward_hook(partial(self._end, group))
            group.missing = len(group.trained)
            if group is not groups[-1]:  # of the whole network, backward has no end of its own
                for p in group.trained:
                    p.register_post_accumulate_grad_hook(partial(self._arrived, group))  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Sum what is left, after backward."""
        for group in self._groups:
            self._sum(group)
        self._ledger.hold(-self._sent)
        self._sent = 0

    def _begin(self, group: Group, module: nn.Module, args: Any) -> None:
        if not self._backward:  # where a block is computed anew, its parameters are there
            self._ledger.hold(group.bytes_ - self._copied)
            self._copied = group.bytes_
            self._ledger.hold(group.bytes_)
            group.there = True

    def _end(self, group: Group, module: nn.Module, args: Any, out: Any) -> None:
        if self._backward:
            return
        self._drop(group)
        self._order.append(group)
        if group is self._groups[-1]:
            self._ledger.hold(-self._copied)
            self._copied = 0
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._need, group))  # type: ignore[no-untyped-call]

    def _need(self, group: Group, gradient: torch.Tensor) -> None:
        self._backward = True
        if group.there:
            return
        self._fetch(group)
        self._ledger.hold(group.bytes_)
        self._ledger.hold(-group.bytes_)  # what it was copied from
        group.there, group.fetched = True, False
        at = self._order.index(group)
        if at:
            self._fetch(self._order[at - 1])

    def _fetch(self, group: Group) -> None:
        if not (group.there or group.fetched):
            group.fetched = True
            self._ledger.hold(group.bytes_)

    def _arrived(self, group: Group, parameter: torch.Tensor) -> None:
        group.missing -= 1
        if not group.missing:
            self._sum(group)

    def _sum(self, group: Group) -> None:
        self._drop(group)
        with_gradient = [p for p in group.trained if p.grad is not None]
        if not with_gradient:
            return
        elements = sum(p.numel() for p in with_gradient)
        self._ledger.hold(-self._sent)
        self._sent = elements * self._reduce_bytes
        self._ledger.hold(self._sent)
        for p in with_gradient:
            p.grad = None
        self._ledger.summed(elements)

    def _drop(self, group: Group) -> None:
        if group.there:
            self._ledger.hold(-group.bytes_)
        group.there = False

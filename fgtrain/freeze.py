"""Freezing by name: frozen parameters get no gradient, frozen BatchNorm no new statistics, heads always train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fgtrain.errors import UserError


def freeze(net: torch.nn.Module, patterns: Sequence[str], heads: Sequence[torch.nn.Module]) -> None:
    """Freeze the parameters whose names match a pattern, all but those of `heads`.

    Raises:
        UserError: a pattern matches nothing, so that a typing error does not silently train everything.
    """
    keep = {id(p) for head in heads for p in head.parameters()}
    names = dict(net.named_parameters())
    for pattern in patterns:
        matched = [n for n in names if fnmatchcase(n, pattern)]
        if not matched:
            raise UserError(f"model.freeze: {pattern!r} matches no parameter; they look like {next(iter(names))!r}")
        for name in matched:
            if id(names[name]) not in keep:
                names[name].requires_grad_(False)


def train_mode(net: torch.nn.Module) -> None:
    """Put a network in training mode, all but its frozen BatchNorm layers."""
    net.train()
    for norm in _frozen_norms(net):
        norm.eval()


def _frozen_norms(net: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            yield module

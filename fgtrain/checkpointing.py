"""Activation checkpointing: the insides of a network's blocks are computed anew in backward, instead of kept."""

from __future__ import annotations

import torch

from fgtrain.errors import UserError


def checkpoint(net: torch.nn.Module, name: str) -> None:
    """Switch it on.

    Raises:
        UserError: the network has no blocks that could be computed anew.
    """
    switch = getattr(net, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError
        switch(True)
    except AssertionError:
        raise UserError(f"checkpointing=true: {name} has none; leave it false, or take another model") from None


def is_checkpointed(net: torch.nn.Module) -> bool:
    """Tell whether parts of a network run forward again in backward."""
    return any(getattr(m, "grad_checkpointing", False) for m in net.modules())

"""torch's constants (dtypes, layouts, memory formats) by name, never by pickle or evaluation."""

from __future__ import annotations

from typing import TypeVar

import torch

from fgtrain.errors import Corrupt

C = TypeVar("C", torch.dtype, torch.layout, torch.memory_format)


def torch_name(constant: torch.dtype | torch.layout | torch.memory_format) -> str:
    """Return the name of one of torch's constants, as `float32` for `torch.float32`."""
    return str(constant).removeprefix("torch.")


def named(name: str, kind: type[C]) -> C:
    """Return the constant of this kind that has this name.

    Raises:
        Corrupt: the installed torch has none.
    """
    constant = getattr(torch, name, None)
    if not isinstance(constant, kind):
        raise Corrupt(f"this torch has no {kind.__name__} called {name!r}")
    return constant

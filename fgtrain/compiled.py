"""torch.compile, so that the watchdog knows when to be patient."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch

from fgtrain.pulse import Phase, Pulse


def compiled(net: torch.nn.Module) -> torch.nn.Module:
    """Have kernels made for a network, at its first calls.

    DDP is compiled with the network in it, so that its buckets still travel during the backward pass.
    Source: PyTorch documentation, torch.compile, "DistributedDataParallel".
    """
    made: Any = torch.compile(net)
    return cast(torch.nn.Module, made)


class Patience:
    """Lets the pulse say so where kernels have to be made first: minutes, wherever a new kind of call comes."""

    def __init__(self, pulse: Pulse, *, compiles: bool) -> None:
        self._pulse, self._compiles = pulse, compiles
        self._seen: set[tuple[object, ...]] = set()

    def first(self, *kind: object) -> AbstractContextManager[None]:
        """Return what to run a forward and a backward pass of this kind in."""
        if not self._compiles or kind in self._seen:
            return nullcontext()
        self._seen.add(kind)
        return self._pulse.meanwhile(Phase.COMPILE)

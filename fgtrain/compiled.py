"""torch.compile, so that the watchdog knows when to be patient."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, cast

import torch

from fgtrain.pulse import Phase, Pulse

# Shapes are few: the micro-batch, what is left of one, a stand-in. Kernels for all sizes at once are slower, and torch
# 2.13 fails to make them for some networks on CPUs ("Cannot convert expression to float").
_STATIC: dict[str, Any] = {"dynamic": False}
# Blocks of the same class share their code, and without this the number of times that it may be compiled.
_APART: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
)


def compiled(net: torch.nn.Module) -> torch.nn.Module:
    """Have kernels made for a network, at its first calls.

    DDP is compiled with the network in it, so that its buckets still travel during the backward pass.
    Source: PyTorch documentation, torch.compile, "DistributedDataParallel".
    """
    made: Any = torch.compile(net, **_STATIC)
    return cast(torch.nn.Module, made)


def compile_in_place(modules: Iterable[torch.nn.Module]) -> None:
    """Have kernels made for each of some parts of a network by itself, at its first calls; all names stay.

    What is between and around them runs as ever: FSDP's gathering of a block's parameters, DeepSpeed's engine, any
    other hook. So it is not `module.compile()`, which takes in hooks, and of torch's own containers compiles nothing.
    """
    for module in modules:
        made: Any = torch.compile(module.forward, **_STATIC, **_APART)
        module.forward = made


def uncompiled(*, compiles: bool) -> AbstractContextManager[None]:
    """Return a context in which nothing is compiled, nor runs compiled: for passes that are few, or of other shapes."""
    if not compiles:
        return nullcontext()
    eager: Any = torch.compiler.set_stance("force_eager")
    return cast(AbstractContextManager[None], eager)


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

"""Out of memory: telling it from other errors, making room, and what would have needed less."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable

import torch

from fgtrain.batchnorm import RunningStatistics
from fgtrain.data import Images
from fgtrain.fitting import Fitted
from fgtrain.ladder import Ladder, Shortage, remember
from fgtrain.optimizer import autocast, computes_in
from fgtrain.place import Place
from fgtrain.plan import Plan
from fgtrain.recipe import Recipe
from fgtrain.runstore import RunStore
from fgtrain.savings import Footprint, savings, spell
from fgtrain.state import State
from fgtrain.tensors import to_input

_PROBE = 2  # samples: BatchNorm wants more than one

# Source: texts of PyTorch's c10 and ATen (CUDABlas.cpp, cudnn Exceptions.h, CPUAllocator.cpp) and of the CUDA runtime.
_TEXTS = re.compile(
    r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|DefaultCPUAllocator: (can't|not enough)"
)


def is_oom(error: RuntimeError) -> bool:
    """Tell whether an error says that there was no memory for a computation."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_TEXTS.search(str(error)))


def make_room(device: torch.device) -> None:
    """Give back what a computation that failed has left. Call where its exception is no more: it holds its tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_ladder(
    recipe: Recipe,
    plan: Plan,
    fitted: Fitted | None,
    runs: RunStore,
    place: Place,
    state: State,
    note: Callable[[str], None],
) -> Ladder:
    """Make a run's ladder: what it finds is kept in the store and told, both by rank 0."""

    def keep(found: Fitted) -> None:
        remember(runs, found, note)

    def tell(shortage: Shortage) -> None:
        note(advice(recipe, state, place.device, shortage))

    return Ladder(plan, fitted, leads=place.leads, keep=keep, tell=tell)


def advice(recipe: Recipe, state: State, device: torch.device, shortage: Shortage) -> str:
    """Say what happened and what would save memory, by what a forward pass of two samples holds on to."""
    make_room(device)
    try:
        found = footprint(recipe, state, device)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        return spell(shortage, recipe, [])
    bf16 = computes_in(recipe, device) != torch.float32
    return spell(shortage, recipe, savings(recipe, found, shortage.micro, shortage.world, bf16=bf16))


def footprint(recipe: Recipe, state: State, device: torch.device) -> Footprint:
    """Measure what a network's parameters, and one sample's way through it, take; it is left as it was."""
    parameters = list(state.net.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    norms = RunningStatistics(state.net)
    norms.begin_step()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = forward(recipe, state.net, blank(recipe, _PROBE), device)
    del logits
    norms.go_back()
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    return Footprint(sum(p.nbytes for p in parameters), trained, sum(held.values()) // _PROBE)


def blank(recipe: Recipe, samples: int) -> torch.Tensor:
    """Return black pictures as a loader gives them, uint8 (N, crop, crop, 3)."""
    assert isinstance(recipe.data, Images)
    return torch.zeros(samples, recipe.data.crop, recipe.data.crop, 3, dtype=torch.uint8)


def forward(recipe: Recipe, net: torch.nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Run a network on pictures, uint8 (N, H, W, 3); returns (N, classes)."""
    with autocast(recipe, device):
        logits_NC: torch.Tensor = net(to_input(images, recipe, device))
    return logits_NC

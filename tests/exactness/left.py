"""Some steps under any strategy, and the whole state that they leave, so that it can be compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fgtrain.place import Place, from_all
from fgtrain.plan import make_plan
from fgtrain.recipe import Recipe
from fgtrain.shards import Sharded
from fgtrain.snapshot.exchange import Exchange
from fgtrain.snapshot.layout import Layout, flat_bytes, tensor_at
from fgtrain.state import State
from fgtrain.step import Stepper, Wishes
from tests.exactness.training import SAMPLES, made_up


class Left(NamedTuple):
    """What steps left on a rank: the losses, the whole state, how much of it was here."""

    losses: list[float]
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    held: int


def train(place: Place, recipe: Recipe, start: Left | None, steps: int) -> Left:
    """Take steps from the beginning, or from what others left."""
    torch.set_num_threads(1)
    plan = make_plan(recipe, SAMPLES)
    state = recipe.strategy.build(recipe, place)
    if start:
        state.load(start.tensors, start.values)
    stepper = Stepper(recipe, plan, place, state)
    batches = made_up(recipe, plan, place, state.step, frozenset())
    losses = [stepper.step(batches, Wishes(), lambda: None).loss for _ in range(steps)]
    return Left(losses, gathered(state, place), state.values(), held(state))


def held(state: State) -> int:
    """Return how many elements of parameters are here."""
    entries = [t for n, t in state.tensors()["model"].items() if not n.endswith(("running_mean", "running_var"))]
    return sum((t.local if isinstance(t, Sharded) else t).numel() for t in entries)


def gathered(state: State, place: Place) -> dict[str, torch.Tensor]:
    """Return the whole state on every rank, the way snapshots bring it together."""
    tensors = state.tensors()
    layout = Layout(tensors, chunk_bytes=4096)
    mine = layout.share(place.rank, place.size)
    targets = {g: torch.zeros(stop - start, dtype=torch.uint8) for g, (start, stop) in mine.items()}
    if any(isinstance(t, Sharded) for some in tensors.values() for t in some.values()):
        Exchange(layout, tensors, place).run(tensors, targets, set())
    whole = {g: torch.zeros(b, dtype=torch.uint8) for g, b in layout.group_bytes.items()}
    for some, share in from_all((targets, mine), place):
        for group, (start, stop) in share.items():
            whole[group][start:stop] = some[group]
    for span, t in [(layout.spans[n], t) for some in tensors.values() for n, t in some.items()]:
        if isinstance(t, torch.Tensor):
            whole[span.group][span.offset : span.offset + span.bytes_] = flat_bytes(t, span.order)
    return {n: tensor_at(whole[s.group], s).clone() for n, s in layout.spans.items()}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], times: float = 1) -> None:
    """Hold two states to be as close as sums of fp32 in another order leave them, or so many times that."""
    assert ours.keys() == theirs.keys()
    close = {"rtol": 1e-3 * times, "atol": 1e-4 * times}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **close, msg=lambda m, n=name: f"{n}: {m}")

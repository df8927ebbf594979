"""FSDP takes the steps that DDP takes, and a state goes from one to the other, and to any world, unchanged."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from fgtrain.place import Place, from_all
from fgtrain.plan import make_plan
from fgtrain.pulse import Pulse
from fgtrain.recipe import Ema, Recipe, replace
from fgtrain.shards import Sharded
from fgtrain.snapshot.exchange import Exchange
from fgtrain.snapshot.layout import Layout, flat_bytes, tensor_at
from fgtrain.state import State
from fgtrain.step import Stepper, Wishes
from fgtrain.strategies.fsdp import FSDP
from tests.exactness.training import RESNET, SAMPLES, made_up
from tests.testbed.rank_pool import Ranks

pytestmark = [pytest.mark.train, pytest.mark.chaos]

SMALL = replace(RESNET, determinism="samples", ema=Ema(decay=0.9), clip_norm=0.5)
SHARDED = replace(SMALL, strategy=FSDP(unit=5000))
HALF = 2  # steps before the state changes hands


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


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("world", [1, 4])  # 6 micro-batches: 4 ranks have uneven shares
def test_fsdp_takes_the_steps_of_ddp(ranks: Ranks, world: int) -> None:
    [alone] = ranks.call(1, train, SMALL, None, 4)
    shards = ranks.call(world, train, SHARDED, None, 4)
    for rank in shards:
        assert rank.losses == pytest.approx(alone.losses, rel=1e-3)
        assert_close(rank.tensors, alone.tensors)
    assert max(rank.held for rank in shards) <= -(-alone.held // world) * 1.3


class Passes(Pulse):
    """A pulse that keeps the numbers of passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def passes(self, number: int) -> None:
        """See `Pulse`."""
        self.seen.append(number)


def number_passes(place: Place, recipe: Recipe) -> list[int]:
    """Take a step and return the passes that this rank has told of."""
    torch.set_num_threads(1)
    plan = make_plan(recipe, SAMPLES)
    state, pulse = recipe.strategy.build(recipe, place), Passes()
    batches = made_up(recipe, plan, place, state.step, frozenset())
    Stepper(recipe, plan, place, state, pulse).step(batches, Wishes(), lambda: None)
    return pulse.seen


def test_ranks_with_uneven_shares_number_the_passes_in_which_they_meet_alike(ranks: Ranks) -> None:
    assert ranks.call(4, number_passes, SHARDED) == [[1, 2, 3]] * 4  # the third is the exchange after all passes
    assert ranks.call(4, number_passes, SMALL) == [[]] * 4


@pytest.mark.parametrize("before, after", [((SMALL, 2), (SHARDED, 3)), ((SHARDED, 3), (SMALL, 1))])
def test_state_changes_strategy_and_world_unchanged(
    ranks: Ranks, before: tuple[Recipe, int], after: tuple[Recipe, int]
) -> None:
    [whole] = ranks.call(1, train, SMALL, None, 2 * HALF)
    left = ranks.call(before[1], train, before[0], None, HALF)[0]
    taken = ranks.call(after[1], train, after[0], left, 0)[0]
    assert taken.tensors.keys() == left.tensors.keys()
    assert all(torch.equal(t, left.tensors[n]) for n, t in taken.tensors.items())
    on = ranks.call(after[1], train, after[0], left, HALF)[0]
    assert [*left.losses, *on.losses] == pytest.approx(whole.losses, rel=1e-3)


def test_fsdp_gathers_bf16_where_the_recipe_computes_in_it(ranks: Ranks) -> None:
    """BatchNorm's parameters stay fp32: its statistics are, and CPU kernels take no others beside them."""
    whole = ranks.call(2, train, replace(SMALL, precision="bf16"), None, 3)
    shards = ranks.call(2, train, replace(SHARDED, precision="bf16"), None, 3)
    assert shards[0].losses == pytest.approx(whole[0].losses, rel=3e-2)
    assert {t.dtype for t in shards[0].tensors.values()} == {torch.float32, torch.int64}

"""FSDP takes the steps that DDP takes, and a state goes from one to the other, and to any world, unchanged."""

from __future__ import annotations

import pytest
import torch

from fgtrain.place import Place
from fgtrain.plan import make_plan
from fgtrain.pulse import Pulse
from fgtrain.recipe import Ema, Recipe, replace
from fgtrain.step import Stepper, Wishes
from fgtrain.strategies.fsdp import FSDP
from tests.exactness.left import assert_close, train
from tests.exactness.training import RESNET, SAMPLES, made_up
from tests.testbed.rank_pool import Ranks

pytestmark = [pytest.mark.train, pytest.mark.chaos]

SMALL = replace(RESNET, determinism="samples", ema=Ema(decay=0.9), clip_norm=0.5)
SHARDED = replace(SMALL, strategy=FSDP(unit=5000))
HALF = 2  # steps before the state changes hands


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

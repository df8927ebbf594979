"""Out of memory in the middle of a step: it is taken again with smaller micro-batches, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fgtrain import singles
from fgtrain.build import build_state
from fgtrain.errors import UserError
from fgtrain.fit import later
from fgtrain.fitting import Cut, Fitted
from fgtrain.ladder import Shortage
from fgtrain.place import Place
from fgtrain.plan import make_plan
from fgtrain.recipe import Batch, Mixup, Recipe, replace
from fgtrain.strategies.fsdp import FSDP
from tests.exactness.training import RESNET, Hungry, fitting, reckoning, train
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train

ROOMY = replace(RESNET, model=Hungry(limit=99), batch=Batch(total=12, micro=4))
FROM_2 = Fitted(cuts=(Cut(2, 2),))
"""From step 2 on, micro-batches of two."""


CPU = torch.device("cpu")


class Operators(TorchDispatchMode):
    """Notes the names of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def tight(recipe: Recipe, **device: object) -> Recipe:
    """The same on devices with less memory."""
    return replace(recipe, model=replace(recipe.model, limit=2, **device))


@pytest.mark.parametrize(("world", "where"), [(1, "forward"), (2, "backward"), (3, "backward"), (3, "forward")])
def test_bits_are_those_of_a_run_that_knew_before(ranks: Ranks, world: int, where: str) -> None:
    (known, *_) = ranks.call(1, train, ROOMY, fitted=FROM_2)
    found = ranks.call(world, train, tight(ROOMY, from_step=2, rank=world - 1, where=where))
    assert {o.digest for o in found} == {known.digest}
    assert [o.losses for o in found] == [known.losses] * world
    assert [o.shortages for o in found] == [[Shortage(2, 1, world, 4, 2)]] * world
    assert known.shortages == []


def test_buckets_that_have_left_already_are_met_by_others(ranks: Ranks) -> None:
    larger = replace(RESNET.data, resize=64, crop=64)
    recipe = replace(ROOMY, model=Hungry(name="resnet18", limit=99), data=larger, epochs=0.8)
    (known, *_) = ranks.call(1, train, recipe, fitted=Fitted(cuts=(Cut(1, 2),)))
    found = ranks.call(2, train, tight(recipe, from_step=1, rank=1, where="backward"))
    assert {o.digest for o in found} == {known.digest}


def test_bits_from_the_first_step_on_are_those_of_a_recipe_with_that_micro_batch(ranks: Ranks) -> None:
    (small, *_) = ranks.call(1, train, replace(ROOMY, batch=Batch(total=12, micro=2)))
    found = ranks.call(3, train, tight(ROOMY, rank=1))
    assert {o.digest for o in found} == {small.digest}


@pytest.mark.parametrize(("rank", "where"), [(0, "backward"), (1, "forward"), (1, "backward")])
def test_samples_level_goes_on_as_if_it_had_known_before(ranks: Ranks, rank: int, where: str) -> None:
    recipe = replace(ROOMY, determinism="samples")
    known = ranks.call(2, train, recipe, fitted=FROM_2)
    found = ranks.call(2, train, tight(recipe, from_step=2, rank=rank, where=where))
    assert [o.losses for o in found] == [pytest.approx(k.losses, rel=1e-4) for k in known]
    assert len({o.digest for o in found}) == 1, "ranks differ"
    assert [o.shortages for o in found] == [[Shortage(2, 1, 2, 4, 2)]] * 2


def test_a_device_too_small_for_one_sample_ends_the_run_on_all_ranks(ranks: Ranks) -> None:
    larger = replace(RESNET.data, resize=64, crop=64)  # of which BatchNorm bears a single one
    recipe = replace(ROOMY, model=Hungry(limit=0, rank=1), data=larger, determinism="samples")
    with pytest.raises(AssertionError) as told:
        ranks.call(2, train, recipe)
    assert str(told.value).count("MemoryError: step 0: out of memory with micro-batches of 1; there is nothing") == 2


def test_what_batchnorm_refuses_is_not_tried(ranks: Ranks) -> None:
    recipe = replace(ROOMY, model=Hungry(limit=0, rank=1), determinism="samples")
    with pytest.raises(AssertionError) as told:
        ranks.call(2, train, recipe)
    assert str(told.value).count("MemoryError: step 0: out of memory with micro-batches of 2; BatchNorm layers") == 2


def test_single_sample_that_a_run_ends_with_has_the_same_bits_in_any_world(ranks: Ranks) -> None:
    """The last of 58 samples is alone in its micro-batch: with three in each, 57 are in full ones."""
    recipe = replace(RESNET, batch=Batch(total=12, micro=3))
    (alone, *_) = ranks.call(1, train, recipe)
    assert {o.digest for o in ranks.call(3, train, recipe)} == {alone.digest}


def test_micro_batch_of_one_by_recipe_is_refused_where_batchnorm_sees_one_pixel() -> None:
    one = replace(RESNET, batch=Batch(total=12, micro=1))
    with pytest.raises(UserError, match=r"batch\.micro=1: .*--set batch\.micro=2, or a larger data\.crop"):
        singles.check(one, make_plan(one, 29))
    larger = replace(one, data=replace(RESNET.data, resize=64, crop=64))
    singles.check(larger, make_plan(larger, 29))


def test_what_is_computed_anew_leaves_the_same_bits(ranks: Ranks) -> None:
    (kept, *_) = ranks.call(1, train, RESNET)
    found = ranks.call(2, train, replace(RESNET, checkpointing=True))
    assert {o.digest for o in found} == {kept.digest}


@pytest.mark.parametrize(("limit", "found"), [(99, 6), (3, 3), (0, 1)])
def test_fit_finds_the_largest_micro_batch_for_all_ranks(ranks: Ranks, limit: int, found: int) -> None:
    larger = replace(RESNET.data, resize=64, crop=64)
    recipe = replace(ROOMY, model=Hungry(limit=limit, rank=1), data=larger, determinism="samples")
    assert ranks.call(2, fitting, recipe) == [found] * 2


@pytest.mark.parametrize("micro", [2, 3])
def test_fit_in_lockstep_reckons_with_the_rank_that_has_least(ranks: Ranks, micro: int) -> None:
    recipe = replace(RESNET, batch=Batch(total=12, micro=4), strategy=FSDP(), determinism="samples")
    assert ranks.call(2, reckoning, recipe, micro) == [micro] * 2


def test_fit_leaves_room_for_what_training_takes_later() -> None:
    """Moments of SGD; and DDP's buckets, where it accumulates beside them."""
    recipe = replace(RESNET, determinism="samples")
    state = build_state(recipe, CPU)
    trained = sum(p.nbytes for p in state.net.parameters())
    assert later(recipe, state, Place(0, 1, 0, CPU)) == trained
    assert later(recipe, state, Place(0, 2, 0, CPU)) == 2 * trained
    assert later(recipe, state, Place(0, 6, 0, CPU)) == trained  # one micro-batch a rank: its gradients are the buckets
    assert later(replace(recipe, determinism="bits"), state, Place(0, 6, 0, CPU)) == 2 * trained


def test_fit_blends_where_training_does() -> None:
    def operators(recipe: Recipe) -> set[str]:
        with Operators() as seen:
            assert fitting(Place(0, 1, 0, CPU), recipe) == 12
        return seen.names

    recipe = replace(RESNET, determinism="samples")
    assert "aten::lerp" not in operators(recipe)
    assert {"aten::lerp", "aten::cat"} <= operators(replace(recipe, mixup=Mixup()))

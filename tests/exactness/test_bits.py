"""`determinism="bits"`: the same bits in every world."""

from __future__ import annotations

import pytest

from fgtrain.recipe import replace
from tests.exactness.training import RESNET, VIT, Forgetful, Oddities, Outcome, assert_ranks_differ, train
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train

WORLDS = (1, 2, 3, 4)
CASES = {
    "resnet": RESNET,
    "resnet bf16": replace(RESNET, precision="bf16"),
    "resnet channels last": replace(RESNET, channels_last=True),
    "vit": VIT,
    "vit bf16": replace(VIT, precision="bf16"),
}


def agreed(outcomes: list[Outcome]) -> Outcome:
    assert len({o.digest for o in outcomes}) == 1, "ranks differ"
    return outcomes[0]


@pytest.mark.parametrize("case", CASES)
def test_every_world_ends_with_the_same_bits(ranks: Ranks, case: str) -> None:
    found = {world: agreed(ranks.call(world, train, CASES[case])) for world in WORLDS}
    assert {world: o.digest for world, o in found.items()} == dict.fromkeys(WORLDS, found[1].digest)
    assert all(o.losses == found[1].losses for o in found.values())


def test_samples_alone_do_not_fix_the_bits(ranks: Ranks) -> None:
    recipe = replace(RESNET, determinism="samples")
    found = {world: agreed(ranks.call(world, train, recipe)).digest for world in (1, 3)}
    assert found[1] != found[3], "then the tests of this file show nothing"


def test_the_seed_changes_the_bits(ranks: Ranks) -> None:
    assert agreed(ranks.call(1, train, RESNET)) != agreed(ranks.call(1, train, replace(RESNET, seed=1)))


def test_the_number_of_threads_that_the_environment_asks_for_does_not_matter(ranks: Ranks) -> None:
    one = agreed(ranks.call(1, train, RESNET))
    assert agreed(ranks.call(1, train, RESNET, threads=3)).digest == one.digest


def test_micro_batches_of_bad_pictures_only_count_for_nothing_anywhere(ranks: Ranks) -> None:
    bad = frozenset({(0, 0), (1, 2), (1, 5), (2, 3)})
    found = [agreed(ranks.call(world, train, RESNET, bad=bad)) for world in (1, 2, 4)]
    assert {o.digest for o in found} == {found[0].digest}
    assert found[0].digest != agreed(ranks.call(1, train, RESNET)).digest


@pytest.mark.parametrize("case", ["resnet", "vit"])
def test_fp16_overflows_are_skipped_by_all_ranks_and_the_rest_is_trained_alike(ranks: Ranks, case: str) -> None:
    recipe = replace(CASES[case], precision="fp16")
    found = [agreed(ranks.call(world, train, recipe, scale=2.0**20)) for world in (1, 3)]
    assert found[0].scale < 2.0**20, "nothing overflowed"
    assert found[0].scale > 2.0**15, "no step was taken: all five overflowed"
    assert found[0] == found[1]


@pytest.mark.parametrize("case", ["resnet", "vit"])
def test_fp16_takes_steps_in_which_a_rank_or_all_of_them_have_no_samples(ranks: Ranks, case: str) -> None:
    """As where a run goes on at its short last step, or all pictures of a step are bad."""
    recipe = replace(CASES[case], precision="fp16")
    half, none = {(0, micro) for micro in range(3, 6)}, {(1, micro) for micro in range(6)}
    found = [agreed(ranks.call(world, train, recipe, bad=frozenset(half | none))) for world in (1, 2)]
    assert found[0] == found[1]
    assert found[0].losses[1] == 0


def test_unused_frozen_and_never_used_parameters(ranks: Ranks) -> None:
    recipe = replace(RESNET, model=Oddities())
    found = [agreed(ranks.call(world, train, recipe)) for world in WORLDS]
    assert {o.digest for o in found} == {found[0].digest}
    assert found[0].unused == ["never.weight", "never.bias"]


def test_a_buffer_that_nobody_sums_is_refused_by_name(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="UserError: determinism=bits: the model changes its buffer seen"):
        ranks.call(1, train, replace(RESNET, model=Forgetful()))


def test_ranks_that_begin_with_different_weights_are_found_out(ranks: Ranks) -> None:
    messages = ranks.call(2, assert_ranks_differ)
    assert all("different weights: ['1.weight']" in m for m in messages)

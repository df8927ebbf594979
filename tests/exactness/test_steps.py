"""FSDP and ZeRO take the steps of DDP: two ranks, each option of theirs, a small network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from fgtrain.recipe import SGD, Batch, Recipe, replace
from fgtrain.strategies import Strategy
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO
from tests.exactness.left import Left, assert_close, train
from tests.exactness.training import RESNET
from tests.testbed.needs import needs_deepspeed
from tests.testbed.rank_pool import Ranks

pytestmark = pytest.mark.train

STEPS = 2
LOSSES = 1e-4
"""How far apart losses may be, of each. Nothing to 1e-8 was seen."""
LARGER = replace(RESNET.data, resize=64, crop=64)  # of which BatchNorm sees more than two values a channel
PLAIN = replace(
    RESNET, determinism="samples", data=LARGER, optim=SGD(lr=0.02, momentum=0.9), batch=Batch(total=8, micro=2)
)
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "clipped": {"precision": "fp32", "clip_norm": 0.05},
    "all": {"precision": "bf16", "clip_norm": 0.05},
}
SPREAD: dict[str, Strategy] = {
    "fsdp": FSDP(unit=5000),  # else so small a network is one unit
    "zero1": ZeRO(stage=1),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3),
}
EACH = [pytest.param(s, id=n, marks=needs_deepspeed if n.startswith("zero") else ()) for n, s in SPREAD.items()]


@pytest.fixture(scope="module")
def take() -> Iterator[Callable[[Recipe], Left]]:
    """What takes a recipe's first steps on two ranks, each recipe once."""
    with Ranks(2, settled=True) as ranks:
        yield cache(lambda recipe: ranks.call(2, train, recipe, None, STEPS)[0])


@pytest.mark.parametrize("way", ["fp32", "bf16", "clipped"])
@pytest.mark.parametrize("strategy", EACH)
def test_spread_state_is_trained_as_a_whole_one(take: Callable[[Recipe], Left], strategy: Strategy, way: str) -> None:
    whole = replace(PLAIN, **WAYS[way])
    assert_alike(take(replace(whole, strategy=strategy)), take(whole), way)


@pytest.mark.parametrize("strategy", EACH)
def test_so_is_one_in_host_memory_with_all_the_rest(take: Callable[[Recipe], Left], strategy: Strategy) -> None:
    whole = replace(PLAIN, **WAYS["all"])
    assert_alike(take(replace(whole, strategy=replace(strategy, offload=True))), take(whole), "all")


def test_what_fsdp_computes_anew_is_the_same(take: Callable[[Recipe], Left]) -> None:
    whole = replace(PLAIN, **WAYS["fp32"])
    assert_alike(take(replace(whole, strategy=SPREAD["fsdp"], checkpointing=True)), take(whole), "fp32")


@pytest.mark.parametrize("way", ["bf16", "clipped", "all"])
def test_each_way_differs_by_more_than_is_let_pass(take: Callable[[Recipe], Left], way: str) -> None:
    """Else a strategy that forgets to clip, or to compute in bf16, would pass."""
    with pytest.raises(AssertionError, match="not close"):
        assert_alike(take(replace(PLAIN, **WAYS[way])), take(replace(PLAIN, **WAYS["fp32"])), way)


def assert_alike(ours: Left, theirs: Left, way: str) -> None:
    assert_close(ours.tensors, theirs.tensors, 10 if way in ("bf16", "all") else 1)
    assert ours.losses == pytest.approx(theirs.losses, rel=LOSSES)

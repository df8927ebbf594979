"""The arithmetic of memory: what is shared out shrinks with the world, and nothing else does."""

from __future__ import annotations

import msgspec
import pytest

from fgtrain.memory import Moment, Sizes, estimate, spell
from fgtrain.recipe import SGD, AdamW, Batch, Ema, Recipe, replace
from fgtrain.strategies.ddp import DDP
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO
from tests.fgtrain.recipes import recipe

SIZES = Sizes(trained=100_000_000, frozen=0, unit=5_000_000, buffers=0, moments=(Moment(7),))
ADAM = recipe(optim=AdamW(lr=0.1))


def of(strategy: DDP | FSDP | ZeRO, world: int, of: Recipe = ADAM) -> tuple[int, ...]:
    return tuple(estimate(SIZES, replace(of, strategy=strategy), world))


@pytest.mark.parametrize("micro", [1, 64])
def test_ddp_needs_sixteen_bytes_a_parameter_with_adam_and_four_more_where_it_accumulates(micro: int) -> None:
    one = replace(ADAM, batch=Batch(total=64, micro=micro))
    for world in (1, 2, 64):
        more = 4 if 1 < world < 64 // micro else 0
        assert sum(of(DDP(), world, one)) == (16 + more) * SIZES.trained + SIZES.activations


@pytest.mark.parametrize("optim, slots", [(SGD(lr=0.1, momentum=0.0), 0), (SGD(lr=0.1), 1), (AdamW(lr=0.1), 2)])
def test_optimizers_keep_what_they_keep(optim: SGD | AdamW, slots: int) -> None:
    assert estimate(SIZES, recipe(optim=optim), 1).optimizer == 4 * slots * SIZES.trained


def test_each_stage_shares_out_more() -> None:
    """Source: Rajbhandari et al., ZeRO, arXiv 1910.02054, figure 1."""
    world = 64
    kept = [estimate(SIZES, replace(ADAM, strategy=ZeRO(stage=s)), world) for s in (1, 2, 3)]
    assert all(e.optimizer == 8 * SIZES.trained // world for e in kept)
    assert kept[1].gradients == 4 * SIZES.trained // world < kept[0].gradients
    assert kept[2].parameters == 2 * 4 * SIZES.trained // world < kept[1].parameters
    assert estimate(SIZES, replace(ADAM, strategy=FSDP()), world).parameters == 4 * SIZES.trained // world


def test_moving_average_is_shared_out_with_the_weights() -> None:
    with_average = recipe(ema=Ema())
    assert estimate(SIZES, with_average, 4).average == 4 * SIZES.trained
    assert estimate(SIZES, replace(with_average, strategy=FSDP()), 4).average == SIZES.trained


def test_estimate_reads_well() -> None:
    assert spell(estimate(SIZES, ADAM, 1)).startswith("1.60 GB a rank: parameters 400.0 MB, gradients 400.0 MB,")


def test_gradients_that_are_not_summed_yet_are_not_there_unless_they_are_of_earlier_micro_batches() -> None:
    """Activations go as gradients come: 100 MB of the one, or 200 MB (of two ranks' 400 MB) of the other."""
    passes = (Moment(90_000_000, 10_000_000, 0), Moment(4_000_000, 40_000_000, 50_000_000), Moment(0, 0, 100_000_000))
    sizes = msgspec.structs.replace(SIZES, moments=passes)
    once = estimate(sizes, replace(ADAM, strategy=FSDP(), batch=Batch(total=4, micro=2)), 2)
    assert (once.gradients, once.activations, once.working) == (200_000_000, 0, 0)
    again = estimate(sizes, replace(ADAM, strategy=FSDP(), batch=Batch(total=8, micro=2)), 2)
    added = 5_000_000 * 4 // 2
    assert (again.gradients, again.activations, again.working) == (200_000_000, 90_000_000, 10_000_000 + added)


@pytest.mark.parametrize(
    "strategy",
    [FSDP(offload=True), ZeRO(stage=1, offload=True), ZeRO(stage=2, offload=True), ZeRO(offload=True, stage=3)],
)
def test_what_is_offloaded_counts_on_the_host_and_on_a_cpu_but_not_on_a_gpu(strategy: FSDP | ZeRO) -> None:
    kept = estimate(SIZES, replace(ADAM, strategy=replace(strategy, offload=False)), 4)
    moved = estimate(SIZES, replace(ADAM, strategy=strategy), 4)
    assert kept.host == moved.optimizer == 0
    assert kept.on("cpu") == kept.on("cuda") == kept.total
    assert moved.on("cuda") == moved.total < kept.total - kept.optimizer
    assert moved.on("cpu") == moved.total + moved.host >= kept.total - moved.working
    assert moved.host >= kept.optimizer + SIZES.trained  # moments, and a quarter of the gradients
    assert f"; offloaded to the host {moved.host / 1e6:.1f} MB" in spell(moved)


def test_a_part_of_the_state_that_no_rank_offloads_stays_on_the_device() -> None:
    for stage in (1, 2):
        assert (
            estimate(SIZES, replace(ADAM, strategy=ZeRO(stage=stage, offload=True)), 4).parameters == 4 * SIZES.trained
        )
    assert estimate(SIZES, replace(ADAM, strategy=FSDP(offload=True)), 4).parameters == SIZES.buffers

"""What a network takes, found on tensors without contents."""

from __future__ import annotations

import pytest
import torch

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.gathering import grouped
from fgtrain.models.timm import Timm
from fgtrain.recipe import Batch, Recipe, replace
from fgtrain.sizes import measure, refuses_one
from fgtrain.strategies.fsdp import FSDP
from tests.fgtrain.recipes import recipe

pytestmark = pytest.mark.train

RESNET = recipe(
    model=Timm(name="test_resnet", classes=10),
    data=ImageFolder(root="made up", resize=64, crop=64),
    batch=Batch(total=64, micro=16),
)


def activations(of: Recipe) -> int:
    return measure(of).activations


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing_and_bf16() -> None:
    whole = activations(RESNET)
    assert activations(replace(RESNET, batch=Batch(total=64, micro=32))) == pytest.approx(2 * whole, rel=0.05)
    assert activations(replace(RESNET, checkpointing=True)) < 0.9 * whole
    assert activations(replace(RESNET, precision="bf16")) < 0.8 * whole


def test_frozen_layers_keep_nothing() -> None:
    frozen = measure(replace(RESNET, model=Timm(name="test_resnet", classes=10, freeze=("*",))))
    assert frozen.trained < frozen.frozen
    assert frozen.activations < 0.6 * activations(RESNET)


def test_batchnorm_refuses_one_sample_where_it_sees_one_pixel() -> None:
    assert not refuses_one(RESNET)
    assert refuses_one(replace(RESNET, data=ImageFolder(root="made up", resize=32, crop=32)))


VIT = replace(
    RESNET,
    model=Timm(name="test_vit", classes=10),
    data=ImageFolder(root="made up", resize=160, crop=160),
    batch=Batch(total=8, micro=1),
)
UNITS = FSDP(unit=1000)


def test_what_is_gathered_as_bf16_has_no_copies_of_the_weights_and_half_the_working_memory() -> None:
    def bytes_of(of: Recipe) -> tuple[int, int]:
        found = measure(replace(of, strategy=UNITS))
        return found.activations, max(m.working for m in found.moments)

    (whole, working), (half, half_working) = bytes_of(VIT), bytes_of(replace(VIT, precision="bf16"))
    assert half < 0.65 * whole  # what autocast does in fp32 all the same, it does
    assert half_working < 0.8 * working  # gradients are still summed in fp32
    kept = replace(VIT, precision="bf16", strategy=replace(UNITS, param_dtype="fp32"))
    copies = 2 * sum(p.numel() for p in Timm(name="test_vit", classes=10, pretrained=False).build().parameters())
    assert measure(kept).activations > half + 0.5 * copies


@pytest.mark.parametrize("of", [VIT, replace(VIT, precision="bf16"), replace(VIT, checkpointing=True), RESNET])
def test_all_that_was_gathered_goes_and_all_gradients_are_summed(of: Recipe) -> None:
    found = measure(replace(of, strategy=UNITS))
    assert [m.summed for m in found.moments] == sorted({m.summed for m in found.moments})
    assert found.moments[-1].summed == found.trained == measure(of).trained
    assert len(found.moments) > 3
    assert min(m.working for m in found.moments) >= 0


def test_working_memory_is_four_blocks_of_fp32_and_what_is_in_none() -> None:
    """Gathered parameters, those of the block before, gradients that are sent; those on their way are not held."""
    net = Timm(name="test_vit", classes=10, pretrained=False).build()
    found = measure(replace(VIT, strategy=UNITS))
    rest = found.trained - sum(p.numel() for n, p in net.named_parameters() if n.startswith("blocks."))
    assert max(m.working for m in found.moments) == 4 * (rest + 3 * found.unit)


def test_a_block_within_a_block_is_gathered_by_itself() -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    outer = torch.nn.Sequential(inner, torch.nn.Linear(4, 2))
    net = torch.nn.Sequential(outer)
    assert [g.elements for g in grouped(net, [inner, outer], [])] == [20, 10, 0]

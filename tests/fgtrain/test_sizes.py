"""What a network takes, found on tensors without contents."""

from __future__ import annotations

import pytest

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import Batch, Recipe, replace
from fgtrain.sizes import measure, refuses_one
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

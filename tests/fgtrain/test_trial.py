"""A recipe whose model does not take its pictures, or an option, is found out without running it."""

from __future__ import annotations

from typing import Any

import pytest

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.recipe import Batch, Recipe, replace
from fgtrain.trial import is_refusal, refusal
from fgtrain.worker import _recipes_fault as recipes_fault
from tests.fgtrain.recipes import recipe

pytestmark = pytest.mark.train


def of(name: str, crop: int = 224, **options: Any) -> Recipe:
    data = ImageFolder(root="made up", resize=crop, crop=crop)
    return recipe(model=Timm(name=name, classes=7, **options), data=data, batch=Batch(total=4, micro=2))


VIT_64 = of("vit_tiny_patch16_224", 64)


@pytest.mark.parametrize(
    "fine",
    [of("test_resnet", 28), of("test_vit", 160), of("test_vit", 160, drop_path=0.1, drop=0.1, freeze=("blocks.*",))]
    + [replace(of("test_resnet", 28), checkpointing=True)],
)
def test_model_that_takes_its_pictures_is_not_refused(fine: Recipe) -> None:
    assert refusal(fine) is None


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (VIT_64, "data.crop=64: vit_tiny_patch16_224 does not take such pictures (Input height (64) doesn't match"),
        (VIT_64, ": --set data.crop=224 --set data.resize=224, or take another model"),
        (of("levit_128s", 64), "data.crop=64: levit_128s does not take such pictures (Attempting to broadcast"),
        (of("vgg11", drop_path=0.1), "model.drop_path=0.1: vgg11 has no such rate: --set model.drop_path=0"),
        (of("test_resnet", freeze=("foo.*",)), "model.freeze: 'foo.*' matches no parameter; they look like"),
        (of("qwen3_vit_88m_enc"), "model.name=qwen3_vit_88m_enc: it is no classifier, but an encoder"),
        (of("gemma4_vit_167m_enc"), "timm cannot make a classifier of it (Gemma4VitEncoder.__init__() got an unex"),
        (of("resnett50"), "model.name=resnett50: timm has no such model"),
        (replace(of("vgg11"), checkpointing=True), "checkpointing=true: model.name=vgg11 has none"),
    ],
)
def test_refusal_is_one_line_that_names_the_field_and_the_fix(bad: Recipe, text: str) -> None:
    reason = refusal(bad)
    assert reason is not None
    assert text in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("error", "refuses"),
    [
        (AssertionError("Input height (64) doesn't match model (224)."), True),
        (RuntimeError("shape '[2, 3, 7]' is invalid for input of size 800"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), True),
        (NotImplementedError("Cannot copy out of meta tensor; no data!"), False),
        (RuntimeError("Tensor.item() cannot be called on meta tensors"), False),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
    ],
)
def test_what_needs_contents_is_no_refusal(error: Exception, refuses: bool) -> None:
    assert is_refusal(error) == refuses


def test_worker_tells_a_recipe_that_cannot_be_trained_from_any_other_failure() -> None:
    raised = AssertionError("Input height (64) doesn't match model (224).")
    assert "data.crop=64" in (recipes_fault(raised, VIT_64) or "")
    assert recipes_fault(raised, of("test_vit", 160)) is None
    assert recipes_fault(RuntimeError("Connection reset by peer"), VIT_64) is None

"""Values of the right type that make no sense are refused, in the order of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgtrain.overrides import apply
from fgtrain.parts import leaves
from fgtrain.recipe import SGD, Cosine, Ema, Mixup, Recipe, Step
from launcher.recipe_check import RULES, flaws
from launcher.recipe_file import load
from tests.fgtrain.recipes import recipe
from tests.golden import recipe_files


def whole() -> Recipe:
    """A recipe in which every field with a rule is set."""
    return recipe(clip_norm=1.0, ema=Ema(), mixup=Mixup())


@pytest.mark.parametrize("file", recipe_files(), ids=lambda p: p.stem)
def test_recipes_of_this_project_make_sense(file: Path) -> None:
    assert not list(flaws(load(str(file))))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "field", [p for p, v in leaves(recipe(clip_norm=1.0, ema=Ema(), mixup=Mixup())) if isinstance(v, float)]
)
def test_number_that_is_not_finite_is_refused_everywhere(field: str, value: str) -> None:
    assert f"{field}={value}: it must be a finite number" in list(flaws(apply(whole(), f"{field}={value}")))


def test_not_finite_number_within_a_list_is_refused() -> None:
    assert "data.std=0.5,nan,0.5: it must be a finite number" in list(flaws(apply(whole(), "data.std=0.5,nan,0.5")))


@pytest.mark.parametrize(
    "assignment",
    [
        *("epochs=0", "epochs=-1", "optim.lr=0", "optim.lr=-0.1", "batch.total=0", "batch.total=-64", "batch.micro=0"),
        *("model.classes=0", "model.name=", "model.drop=1", "data.crop=0", "data.resize=-1", "data.scale=0,1"),
        *("data.scale=0.5,1.5", "data.std=0.5,0,0.5", "optim.betas=0.9,1", "optim.eps=0", "optim.weight_decay=-1"),
        *("label_smoothing=1", "label_smoothing=-0.1", "clip_norm=0", "ema.decay=1", "loader.workers=-1"),
        *("loader.prefetch=0", "evaluate.every_epochs=-1", "evaluate.micro=0", "snapshots.steps=0"),
        *(
            "mixup.alpha=0",
            "snapshots.seconds=-1",
            "snapshots.memory_steps=-1",
            "snapshots.slots=0",
            "snapshots.fail_after=0",
            "schedule.warmup_epochs=-1",
            "schedule.final=-0.1",
        ),
    ],
)
def test_value_out_of_bounds_is_refused_by_name(assignment: str) -> None:
    changed = apply(recipe(ema=Ema(), mixup=Mixup(), schedule=Cosine()), assignment)
    found = list(flaws(changed))
    assert any(f.startswith(assignment.partition("=")[0] + "=") and "it must be" in f for f in found), found


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (apply(recipe(), "data.crop=33"), "data.crop=33 is larger than data.resize=32"),
        (apply(recipe(), "data.scale=0.9,0.5"), "data.scale=0.9,0.5"),
        (recipe(optim=SGD(lr=1.0, momentum=0.0, nesterov=True)), "optim.nesterov=true"),
        (recipe(schedule=Step(epochs=(1.0, -2.0))), "schedule.epochs=1.0,-2.0"),
        (recipe(schedule=Step(epochs=(1.0,), gamma=0.0)), "schedule.gamma=0.0"),
    ],
)
def test_contradiction_is_refused(changed: Recipe, part: str) -> None:
    assert any(part in f for f in flaws(changed))


def test_every_rule_is_about_a_field_that_exists() -> None:
    kinds = (whole(), recipe(optim=SGD(lr=1.0), schedule=Cosine()), recipe(schedule=Step(epochs=(1.0,))))
    assert set(RULES) <= {path for kind in kinds for path, _ in leaves(kind)}


def test_compiled_kernels_are_no_bits() -> None:
    assert not list(flaws(recipe(compile=True)))
    (flaw,) = flaws(recipe(compile=True, determinism="bits"))
    assert flaw.startswith("compile=true: ")
    assert "--set determinism=samples" in flaw

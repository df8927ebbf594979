"""Recipes as JSON: the same both ways, one digest a value, errors that name the field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from fgtrain.errors import RecipeError
from fgtrain.models import Model
from fgtrain.models.timm import Timm
from fgtrain.parts import convert, digest, from_json, leaves, locate, member, to_json
from fgtrain.recipe import Ema, Recipe, replace
from tests.fgtrain.recipes import recipe, recipes


@given(recipes)
def test_recipe_survives_json_both_ways(one: Recipe) -> None:
    again = from_json(to_json(one), Recipe)
    assert again == one
    assert to_json(again) == to_json(one)
    assert digest(again) == digest(one)


@given(recipes)
def test_digest_does_not_depend_on_the_order_of_fields(one: Recipe) -> None:
    shuffled = json.dumps(dict(reversed(json.loads(to_json(one)).items()))).encode()
    assert digest(from_json(shuffled, Recipe)) == digest(one)


def test_digest_is_the_same_in_every_process() -> None:
    script = "from tests.fgtrain.recipes import recipe; from fgtrain.parts import digest; print(digest(recipe()))"
    run, root = [sys.executable, "-c", script], Path(__file__).parents[2]
    there = {
        subprocess.run(
            run, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}, cwd=root
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert there == {digest(recipe())}


@given(recipes)
def test_any_changed_value_changes_the_digest(one: Recipe) -> None:
    assert digest(replace(one, seed=one.seed + 1)) != digest(one)


@given(recipes)
def test_leaves_are_everything_but_the_parts(one: Recipe) -> None:
    plain = json.loads(to_json(one))
    for path, value in leaves(one):
        node = plain
        for name in path.split("."):
            node = node[name]
        assert node == json.loads(msgspec.json.encode(value))


def test_leaf_of_an_absent_part_is_null() -> None:
    assert dict(leaves(recipe()))["ema"] is None
    assert dict(leaves(recipe(ema=Ema())))["ema.decay"] == 0.9999


def test_parts_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        recipe().epochs = 3  # type: ignore[misc]


def test_member_is_found_by_the_name_of_its_file() -> None:
    assert member(Model, "timm") is Timm


def test_unknown_member_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="no part called 'timmm'; there are timm"):
        member(Model, "timmm")


@pytest.mark.parametrize(
    ("place", "value", "path", "what"),
    [
        (("data", "crop"), "x", "data.crop", "expected int, got str"),
        (("data", "mean"), [0.5, "x", 0.5], "data.mean[1]", "expected float, got str"),
        (("data", "kind"), "nope", "data", "fgtrain.data has no part called 'nope'"),
        (("data", "bogus"), 1, "data", "unknown field bogus"),
        (("model", "classes"), 1.5, "model.classes", "expected int"),
        (("optim", "lr"), None, "optim.lr", "expected float, got null"),
        (("batch", "total"), "8", "batch.total", "expected int, got str"),
        (("seed",), "1", "seed", "expected int, got str"),
    ],
)
def test_error_names_the_whole_way_to_the_field(place: tuple[str, ...], value: object, path: str, what: str) -> None:
    plain = json.loads(to_json(recipe()))
    node = plain
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    with pytest.raises(msgspec.ValidationError) as caught:
        convert(plain, Recipe)
    found_path, found = locate(caught.value)
    assert found_path == path
    assert what in found

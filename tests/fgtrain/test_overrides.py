"""`--set path=value`: read by the field's type, wrong ones told with the nearest right one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fgtrain.data.digits import Digits
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.errors import RecipeError
from fgtrain.overrides import apply
from fgtrain.parts import leaves
from fgtrain.recipe import SGD, Ema, Recipe, Step
from tests.fgtrain.recipes import recipe, recipes


def value_at(one: Recipe, path: str) -> Any:
    node: Any = one
    for name in path.split("."):
        node = getattr(node, name)
    return node


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr=1", 1.0),
        ("optim.lr= 0.5 ", 0.5),
        ("seed=-7", -7),
        ("channels_last=true", True),
        ("channels_last=false", False),
        ("clip_norm=null", None),
        ("clip_norm=2.5", 2.5),
        ("snapshots.steps=10", 10),
        ("snapshots.seconds=null", None),
        ("precision=bf16", "bf16"),
        ("model.name=resnet50", "resnet50"),
        ("model.name=12", "12"),
        ("model.name=a=b", "a=b"),
        ("model.weights=null", None),
        ("model.weights=鸟 类/w.pth", "鸟 类/w.pth"),
        ("data.root=[1] {x}", "[1] {x}"),
        ("model.freeze=", ()),
        ("model.freeze=layer1.*, layer2.*", ("layer1.*", "layer2.*")),
        ('model.freeze=["a,b"]', ("a,b",)),
        ("optim.betas=0.8,0.9", (0.8, 0.9)),
        ("optim.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.scale=0.35,1", (0.35, 1.0)),
        ("data.scale=null", None),
        ("ema.decay=0.99", 0.99),
        ("ema=ema", Ema()),
        ('ema={"decay": 0.5}', Ema(decay=0.5)),
        ("ema=null", None),
        ('optim={"kind": "sgd", "lr": 0.1}', SGD(lr=0.1)),
        ('schedule={"kind": "step", "epochs": [1, 2]}', Step(epochs=(1.0, 2.0))),
        ("data=digits", Digits()),
        ('data={"kind": "imagefolder", "root": "x"}', ImageFolder(root="x")),
        (" epochs =3", 3.0),
    ],
)
def test_value_is_read_as_the_type_of_its_field(assignment: str, value: Any) -> None:
    changed = apply(recipe(), assignment)
    found = value_at(changed, assignment.partition("=")[0].strip())
    assert found == value
    assert type(found) is type(value)


@given(recipes)
def test_only_the_named_value_changes(one: Recipe) -> None:
    before, after = dict(leaves(one)), dict(leaves(apply(one, "loader.workers=77")))
    assert after == before | {"loader.workers": 77}


@given(recipes, st.data())
def test_every_plain_value_can_be_written_and_read_back(one: Recipe, data: st.DataObject) -> None:
    path, value = data.draw(st.sampled_from(list(leaves(one))))
    assume(not isinstance(value, tuple))
    assume(value != "null")  # which reads as nothing where there may be nothing
    text = "null" if value is None else str(value)
    assert value_at(apply(one, f"{path}={text}"), path) == value


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("optim.lrr=1", ["--set optim.lrr", "AdamW has no field 'lrr'", "did you mean 'optim.lr'?"]),
        ("optm.lr=1", ["Recipe has no field 'optm'", "did you mean 'optim.lr'?"]),
        ("data.dat=1", ["Digits has no field 'dat'"]),
        ("epoch=1", ["did you mean 'epochs'?"]),
        ("ema.ema=1", ["Ema has no field 'ema'", "did you mean 'ema.decay'?"]),
        ("zzz=1", ["there are model, data, optim"]),
        ("optim.=1", ["AdamW has no field ''"]),
        ("optim.lr.x=1", ["lr is a plain value and has no field 'x'"]),
        ("clip_norm.x=1", ["--set clip_norm.x", "set it in the recipe first"]),
        ("=3", ["write path=value"]),
        ("epochs", ["--set epochs", "write path=value"]),
        ("seed=1.5", ["--set seed=1.5", "seed is int", "expected int"]),
        ("seed=", ["--set seed=", "seed is int"]),
        ("channels_last=yes", ["channels_last is bool"]),
        ("precision=fp8", ["precision is one of auto, fp32, bf16, fp16"]),
        ("optim.betas=0.9", ["optim.betas is tuple[float, float]", "length 2, got 1"]),
        ("data.mean=1,2,x", ["data.mean[2]: expected float"]),
        ("clip_norm=x", ["clip_norm is float or null"]),
        ("data=foo", ["--set data=foo", "fgtrain.data has no part called 'foo'", "digits"]),
        ("data=3", ["data is Data", "cannot read a Data from '3'"]),
        ('data={"kind":"digits","crop":"x"}', ["data.crop: expected int"]),
        ('data={"kind":"digits","crp":1}', ["unknown field crp"]),
        ("data={bad", ["--set data={bad", "JSON is malformed"]),
        ("schedule=bogus", ["schedule is Constant or Cosine or Step", "bogus"]),
        ("optim=sgd", ["optim: object missing required field lr"]),
    ],
)
def test_mistake_is_one_line_that_names_the_field(assignment: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        apply(recipe(), assignment)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_last_of_two_assignments_wins() -> None:
    assert apply(apply(recipe(), "seed=1"), "seed=2").seed == 2

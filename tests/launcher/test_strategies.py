"""--strategy: typed, checked against the recipe, part of the plan, and changed by a resume."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fgtrain.errors import UserError
from fgtrain.recipe import Ema, replace
from fgtrain.runstore import RunStore, Spread
from fgtrain.stores import open_store
from fgtrain.strategies import Strategy
from fgtrain.strategies.ddp import DDP
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO
from launcher.cli import STRATEGIES, main, parser
from launcher.commands.resume import spread_anew
from launcher.commands.run import strategy_words
from launcher.recipe_check import flaws
from launcher.recipe_file import load
from tests.fgtrain.recipes import recipe
from tests.fgtrain.test_runstore import run_file

EACH: dict[str, Strategy] = {
    "ddp": DDP(),
    "fsdp": FSDP(),
    "zero1": ZeRO(stage=1),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_name_stands_for_a_part_whose_fields_can_be_set_beside_it(name: str) -> None:
    line = ["run", "recipes/quickstart.py", "--set", "epochs=2", "--strategy", name]
    chosen = load("recipes/quickstart.py", parser("run").parse_args(line).overrides)
    assert (chosen.strategy, chosen.epochs) == (EACH[name], 2.0)
    assert EACH.keys() == STRATEGIES.keys()
    set_too = parser("run").parse_args(["run", "r.py", "--set", "strategy.unit=7", "--strategy", "fsdp"]).overrides
    assert load("recipes/quickstart.py", set_too).strategy == FSDP(unit=7)


def test_unknown_strategy_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recipes/quickstart.py", "--strategy", "zero4"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "zero4" in line
    assert all(name in line for name in STRATEGIES)


@pytest.mark.parametrize("strategy", [FSDP(), ZeRO(stage=1), ZeRO(stage=2), ZeRO(stage=3)], ids=strategy_words)
def test_what_does_not_go_together_is_refused_with_a_way_out(strategy: Strategy) -> None:
    good = recipe(strategy=strategy, determinism="samples", precision="bf16", ema=None)
    assert not list(flaws(good))
    for bad in (replace(good, determinism="bits"), replace(good, precision="fp16")):
        [flaw] = flaws(bad)
        assert "--strategy ddp" in flaw
    refused = [*flaws(replace(good, ema=Ema()))]
    assert len(refused) == (strategy == ZeRO(stage=3))
    assert not list(flaws(replace(good, strategy=DDP(), determinism="bits")))


@pytest.mark.parametrize("strategy", EACH.values(), ids=EACH)
def test_compiling_goes_together_with_all_but_stage_3(strategy: Strategy) -> None:
    found = list(flaws(recipe(strategy=strategy, determinism="samples", precision="bf16", ema=None, compile=True)))
    assert [f.startswith("compile=true: at strategy.stage=3") for f in found] == [True] * (strategy == ZeRO(stage=3))


def test_bf16_parameters_of_an_fp32_recipe_are_refused() -> None:
    [flaw] = flaws(recipe(strategy=FSDP(param_dtype="bf16"), precision="fp32"))
    assert flaw.startswith("strategy.param_dtype=bf16:")


@pytest.mark.parametrize("family", ["quickstart", "imagefolder", "cub_resnet50"])
def test_each_family_of_recipes_has_sharded_variants_that_differ_in_nothing_else(family: str) -> None:
    whole = load(f"recipes/{family}.py")
    assert load(f"recipes/{family}_fsdp.py") == replace(whole, strategy=FSDP())
    assert load(f"recipes/{family}_zero2.py") == replace(whole, strategy=ZeRO(stage=2))


def test_resumed_run_keeps_the_strategy_it_was_last_told(tmp_path: Path) -> None:
    runs = RunStore(open_store(f"file://{tmp_path}"), "run")
    begun = run_file()
    runs.create("run.json", begun)
    assert runs.run_file() == begun
    told = spread_anew(begun, "zero2")
    runs.write("strategy.json", Spread(told.recipe.strategy))
    assert runs.run_file() == told
    assert told == msgspec.structs.replace(begun, recipe=replace(begun.recipe, strategy=ZeRO(stage=2)))
    assert spread_anew(told, None) == told


def test_resuming_under_a_strategy_that_the_recipe_forbids_is_refused() -> None:
    run = run_file()
    exact = msgspec.structs.replace(run, recipe=replace(run.recipe, determinism="bits"))
    with pytest.raises(UserError, match="--strategy fsdp: determinism=bits"):
        spread_anew(exact, "fsdp")

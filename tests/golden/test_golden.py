"""Every recipe in recipes/ resolves to what was committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgtrain.parts import digest, from_json
from fgtrain.recipe import Recipe
from launcher.recipe_file import load
from tests.golden import GOLDEN, golden_file, recipe_files, rendered

MEND = "if that is meant, run `scripts/golden` and commit the difference"


@pytest.mark.parametrize("recipe", recipe_files(), ids=lambda p: p.stem)
def test_recipe_resolves_to_its_golden_file(recipe: Path) -> None:
    assert golden_file(recipe).exists(), f"{golden_file(recipe)} is missing; {MEND}"
    assert rendered(recipe) == golden_file(recipe).read_text(encoding="utf-8"), MEND


@pytest.mark.parametrize("recipe", recipe_files(), ids=lambda p: p.stem)
def test_golden_file_reads_back_as_the_recipe(recipe: Path) -> None:
    read = from_json(golden_file(recipe).read_bytes(), Recipe)
    assert read == load(str(recipe))
    assert digest(read) == digest(load(str(recipe)))


def test_no_golden_file_without_a_recipe() -> None:
    assert set(GOLDEN.glob("*.json")) == {golden_file(r) for r in recipe_files()}, MEND

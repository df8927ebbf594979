"""Resolved recipes as committed text, so that a changed default shows in a diff. `scripts/golden` writes them anew."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fgtrain.parts import to_json
from launcher.recipe_file import load

GOLDEN = Path(__file__).parent
RECIPES = GOLDEN.parents[1] / "recipes"


def recipe_files() -> list[Path]:
    return sorted(f for f in RECIPES.glob("*.py") if f.name != "__init__.py")


def golden_file(recipe: Path) -> Path:
    return GOLDEN / f"{recipe.stem}.json"


def rendered(recipe: Path) -> str:
    """The recipe with every default filled in."""
    return msgspec.json.format(to_json(load(str(recipe))), indent=2).decode() + "\n"

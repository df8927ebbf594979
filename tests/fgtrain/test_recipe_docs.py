"""docs/recipe.md names every field that a recipe can have, and none that it has not."""

from __future__ import annotations

import re
import typing
from pathlib import Path

from fgtrain.data.cub200 import Cub200
from fgtrain.data.digits import Digits
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.models.timm import Timm
from fgtrain.parts import Part
from fgtrain.recipe import Recipe
from fgtrain.strategies.fsdp import FSDP
from fgtrain.strategies.zero import ZeRO

DOCS = Path(__file__).resolve().parents[2] / "docs/recipe.md"
FAMILIES = {"model": (Timm,), "data": (Cub200, Digits, ImageFolder), "strategy": (FSDP, ZeRO)}


def paths() -> set[str]:
    """Return the paths of all fields; parts are there by their fields."""
    found = set()
    for name, annotation in typing.get_type_hints(Recipe).items():
        options = FAMILIES.get(name) or typing.get_args(annotation) or (annotation,)
        parts = [o for o in options if isinstance(o, type) and issubclass(o, Part)]
        found |= {f"{name}.{field}" for part in parts for field in part.__struct_fields__} or {name}
    return found


def test_every_field_is_in_the_table_and_no_other() -> None:
    rows = [line.split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[1])}
    assert named - {"model", "data", "optim", "schedule", "strategy"} == paths()

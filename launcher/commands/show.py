"""`fglaunch show RECIPE`: the resolved recipe, each value with where it came from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from fgtrain.parts import Part
from launcher.recipe_file import load, split_target


class Row(NamedTuple):
    """One value of a recipe and where it came from."""

    path: str
    value: Any
    source: str


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    recipe = load(args.recipe, args.overrides)
    overridden = {a.partition("=")[0].strip() for a in args.overrides}
    rows = list(rows_of(recipe, str(split_target(args.recipe)[0]), overridden))
    if args.json:
        print(json.dumps([r._asdict() for r in rows], indent=1, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("path", "value", "from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.path, json.dumps(row.value, ensure_ascii=False), row.source)
    Console().print(table)
    return 0


def rows_of(part: Part, file: str, overridden: set[str], prefix: str = "") -> Iterator[Row]:
    """Yield every value below a part; a part's own kind comes as the value of its path."""
    for field in msgspec.structs.fields(part):
        value, path = getattr(part, field.name), prefix + field.name
        default = field.default if field.default is not msgspec.NODEFAULT else msgspec.NODEFAULT
        if any(path == o or path.startswith(o + ".") for o in overridden):
            source = "--set"
        else:
            source = "default" if default is not msgspec.NODEFAULT and value == default else file
        if isinstance(value, Part):
            yield Row(path, str(value.__struct_config__.tag), source)
            yield from rows_of(value, file, overridden, path + ".")
        else:
            yield Row(path, msgspec.to_builtins(value), source)

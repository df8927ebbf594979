"""`fglaunch data get NAME`: download a known data set. `fglaunch data cache RECIPE`: prepare a recipe's pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from launcher import datasets
from launcher.foreground import say


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    return _cache(args) if args.action == "cache" else _get(args)


def _cache(args: argparse.Namespace) -> int:
    """Prepare the pictures of a recipe that uses a cache, as its run would."""
    from fgtrain.cache import cache_place
    from fgtrain.cache.ready import make_ready
    from fgtrain.dataindex import usable
    from fgtrain.errors import RecipeError
    from launcher.prepare import check_training_installed, default_store
    from launcher.recipe_file import load, split_target

    recipe = load(args.recipe, args.overrides)
    if recipe.loader.cache == "off":
        path = split_target(args.recipe)[0]
        raise RecipeError(f"{path}: loader.cache=off: nothing to prepare; --set loader.cache=disk")
    check_training_installed()
    index, _ = usable(recipe.data, recipe.data.index())
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        for now in make_ready(recipe, index, store=args.store or default_store()):
            bar.update(task, description=now.what, completed=now.done, total=now.total or None)
    say(f"the pictures of {args.recipe} are prepared in {cache_place()}")
    return 0


def _get(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(args.name, total=None)
        folder = datasets.get(
            args.name,
            Path(args.into),
            args.mirror,
            lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    say(f"{args.name} is in {folder}")
    return 0

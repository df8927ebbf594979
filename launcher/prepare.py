"""From a recipe file to a run that can start: everything that can be wrong is found here, before anything starts."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import KeyExists, RecipeError, UserError
from fgtrain.parts import digest
from fgtrain.plan import World, check_world, make_plan
from fgtrain.recipe import Recipe
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import Store, open_store
from launcher import hardware
from launcher.recipe_file import load, split_target

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "s3fs", "scikit-learn")


def default_store() -> str:
    """Return the store that is used when none is named: $FGLAUNCH_STORE, or the folder `store` here."""
    return os.environ.get("FGLAUNCH_STORE", "store")


def checked_store(url: str) -> tuple[Store, list[str]]:
    """Open a store and try it; returns it with what the user should know of it.

    Raises:
        UserError: it cannot be used.
    """
    store = open_store(url)
    notes = []
    if not store.check().conditional_create:
        notes.append(f"store {store.url} ignores conditional writes: never run two supervisors of one run on it")
    return store, notes


def prepare(target: str, overrides: Sequence[str], world: World, name: str | None = None) -> tuple[RunFile, list[str]]:
    """Plan a run of a recipe; returns it with what the user should know.

    Raises:
        UserError: anything the user can mend.
    """
    recipe = load(target, overrides)
    path = split_target(target)[0]
    check_recipe(recipe, path)
    index, bad = usable(recipe.data, recipe.data.index())
    if recipe.model.classes != len(index.classes):
        raise RecipeError(
            f"{path}: model.classes={recipe.model.classes}, and the data has {len(index.classes)} classes:"
            f" --set model.classes={len(index.classes)}"
        )
    plan = make_plan(recipe, len(index.train))
    check_world(plan, world)
    notes = [f"{len(bad)} bad pictures are skipped, {bad[0].name} ({bad[0].reason}) first"] if bad else []
    run = RunFile(
        name=name or fresh_name(path),
        created=time.time(),
        recipe=recipe,
        recipe_digest=digest(recipe),
        recipe_file=target,
        overrides=tuple(overrides),
        plan=plan,
        world=world,
        data_digest=index_digest(index),
        cwd=str(Path.cwd()),
        code=_code(),
        environment=_environment(),
    )
    return run, notes


def check_recipe(recipe: Recipe, path: Path) -> None:
    """Refuse values that have the right type and make no sense.

    Raises:
        RecipeError
    """
    positive = {
        "epochs": recipe.epochs,
        "optim.lr": recipe.optim.lr,
        "data.resize": recipe.data.resize,
        "data.crop": recipe.data.crop,
        "evaluate.micro": recipe.evaluate.micro,
        "model.classes": recipe.model.classes,
        "loader.prefetch": recipe.loader.prefetch,
    }
    for field, value in positive.items():
        if not value > 0:
            raise RecipeError(f"{path}: {field}={value}: it must be above 0")
    if recipe.data.crop > recipe.data.resize:
        raise RecipeError(f"{path}: data.crop={recipe.data.crop} is larger than data.resize={recipe.data.resize}")
    if recipe.loader.workers < 0:
        raise RecipeError(f"{path}: loader.workers={recipe.loader.workers}: it must be 0 or more")
    if recipe.snapshots.slots < 2:
        raise RecipeError(
            f"{path}: snapshots.slots={recipe.snapshots.slots}: one is kept while another fills: 2 or more"
        )
    if not 0 <= recipe.label_smoothing < 1:
        raise RecipeError(f"{path}: label_smoothing={recipe.label_smoothing}: it must be in [0, 1)")


def check_name(name: str) -> None:
    """Refuse a run name that cannot be a key.

    Raises:
        UserError
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"--name {name!r}: letters, digits, '.', '_' and '-' only, not starting with '.' or '-'")


def fresh_name(path: Path) -> str:
    """Return a name for a new run: the recipe's, the time and a random tail."""
    stem = re.sub(r"[^\w.-]", "-", path.stem)
    return f"{stem}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def register(run: RunFile, store: Store) -> RunStore:
    """Write `run.json`.

    Raises:
        UserError: there is a run of this name.
    """
    runs = RunStore(store, run.name)
    try:
        runs.create("run.json", run)
    except KeyExists:
        raise UserError(
            f"--name {run.name}: {store.url} has a run of this name;"
            f" `fglaunch resume {run.name}` goes on with it, another name starts anew"
        ) from None
    return runs


def check_training_installed() -> None:
    """Refuse to start workers where they could not import torch.

    Raises:
        UserError
    """
    missing = [m for m in ("torch", "timm", "numpy", "PIL") if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed here: pip install 'fglaunch[train]'")


def world_notes(world: World) -> list[str]:
    """Say what `--gpus` comes to on this machine.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    devices, cores = hardware.cuda_devices(), hardware.cpu_count()
    if devices:
        if world.size > len(devices):
            raise UserError(
                f"--nodes {world.nodes} --gpus {world.gpus} needs {world.size} GPUs, this machine has {len(devices)}"
            )
        return []
    notes = [f"no GPU on this machine: --gpus {world.gpus} means CPU processes"]
    if world.size > cores:
        notes.append(f"warning: {world.size} processes share {cores} cores")
    return notes


def _code() -> dict[str, str]:
    """Return the version of this project and, where it runs from a git checkout, its commit."""
    from fgtrain import __version__

    root = Path(__file__).resolve().parent.parent
    found = {"fglaunch": __version__}
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            found |= {"commit": commit.stdout.strip(), "changed": str(bool(changed.stdout.strip())).lower()}
    return found


def _environment() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

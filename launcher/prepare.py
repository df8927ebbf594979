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
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from fgtrain.data import Index
from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import KeyExists, RecipeError, StoreError, UserError
from fgtrain.lineage import find
from fgtrain.parts import digest
from fgtrain.plan import Engine, World, check_world, make_plan
from fgtrain.recipe import Recipe
from fgtrain.runstore import RunFile, RunStore, is_name
from fgtrain.stores import Store
from launcher import hardware
from launcher.recipe_file import load, split_target
from launcher.trial import tried

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "s3fs", "scikit-learn", "simplejpeg")


def default_store() -> str:
    """Return the store that is used when none is named: $FGLAUNCH_STORE, or the folder `store` here."""
    return os.environ.get("FGLAUNCH_STORE", "store")


def try_store(store: Store) -> list[str]:
    """Use every operation of a store once; returns what the user should know of it.

    Raises:
        UserError: it cannot be used.
    """
    if store.check().conditional_create:
        return []
    return [f"store {store.url} ignores conditional writes: never run two supervisors of one run on it"]


def prepare(target: str, overrides: Sequence[str], world: World, name: str | None = None) -> tuple[RunFile, list[str]]:
    """Plan a run of a recipe; returns it with what the user should know.

    Raises:
        UserError: anything the user can mend.
    """
    recipe = load(target, overrides)
    path = split_target(target)[0]
    try:
        recipe.model.check()
    except UserError as error:
        raise RecipeError(f"{path}: {error}") from error
    with tried(recipe, path):
        index, notes = _index(recipe, path)
        plan = make_plan(recipe, len(index.train))
        check_world(plan, world)
    run = RunFile(
        name=fresh_name(path) if name is None else name,
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
        id=secrets.token_hex(8),
    )
    return run, notes


def _index(recipe: Recipe, path: Path) -> tuple[Index, list[str]]:
    """Return the samples of a recipe, and what the user should know of those that are left out.

    Raises:
        UserError
    """
    try:
        index, bad = usable(recipe.data, recipe.data.index())
        others = recipe.data.passed_over()
    except StoreError as error:
        raise RecipeError(f"{path}: data.root: {error}") from error
    if recipe.model.classes != len(index.classes):
        raise RecipeError(
            f"{path}: model.classes={recipe.model.classes}, and the data has {len(index.classes)} classes:"
            f" --set model.classes={len(index.classes)}"
        )
    notes = [f"{len(bad)} bad pictures are skipped, {bad[0].name} ({bad[0].reason}) first"] if bad else []
    if others:
        notes.append(f"files that do not end as pictures do are passed over: {len(others)}, {others[0]} first")
    return index, notes


def check_name(name: str) -> None:
    """Refuse a run name that cannot be a key.

    Raises:
        UserError
    """
    if not is_name(name):
        raise UserError(
            f"--name {name!r}: 1 to 100 letters, digits, '.', '_' and '-' only, not starting with '.' or '-'"
        )


def fresh_name(path: Path) -> str:
    """Return a name for a new run: the recipe's, the time and a random tail."""
    stem = re.sub(r"[^\w.-]", "-", path.stem)[:40].lstrip(".-") or "run"
    return f"{stem}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def begin_from(run: RunFile, store: Store, reference: str | None, skip: Sequence[str]) -> RunFile:
    """Let a run begin with the weights of the snapshot that `--init-from RUN[@STEP]` names, if it does.

    Raises:
        UserError: no such snapshot, or nothing to skip tensors of.
    """
    if reference is None:
        if skip:
            raise UserError("--init-skip: it says what --init-from leaves out; name a run with --init-from")
        return run
    try:
        parent, manifest = find(store, reference)
    except UserError as error:
        raise UserError(f"--init-from: {error}") from None
    return msgspec.structs.replace(run, init_from=f"{parent.run}@{manifest.name}", init_skip=tuple(skip))


def check_unused(name: str, store: Store) -> None:
    """Refuse a name that is taken, before anything is written; `register` settles a race.

    Raises:
        UserError: there is a run of this name, or the store does not answer.
    """
    try:
        taken = RunStore(store, name).exists("run.json")
    except StoreError as error:
        raise UserError(str(error)) from error
    if taken:
        raise _taken(name, store)


def register(run: RunFile, store: Store) -> RunStore:
    """Write `run.json`.

    Raises:
        UserError: there is a run of this name.
    """
    runs = RunStore(store, run.name)
    try:
        runs.create("run.json", run)
    except KeyExists:
        raise _taken(run.name, store) from None
    return runs


def _taken(name: str, store: Store) -> UserError:
    return UserError(
        f"--name {name}: {store.url} has a run of this name;"
        f" `fglaunch resume {name} --store {store.url}` goes on with it, another name starts anew"
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_training_installed(
    recipe: Recipe | None = None, engine: Engine = "torchrun", installed: Callable[[str], bool] = _is_installed
) -> None:
    """Refuse to start workers where they could not import torch, or what starts them or their strategy is made of.

    Raises:
        UserError
    """
    missing = [m for m in ("torch", "timm", "numpy", "PIL", "simplejpeg") if not installed(m)]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed here: pip install 'fglaunch[train]'")
    extra = recipe.strategy.extra if recipe else ""
    if extra and not installed(extra):
        raise UserError(f"the recipe's strategy needs {extra}, not installed here: pip install 'fglaunch[{extra}]'")
    if engine == "deepspeed" and not installed("deepspeed"):
        raise UserError(
            "--engine deepspeed: not installed here: pip install 'fglaunch[deepspeed]', or --engine torchrun"
        )


def world_notes(world: World) -> list[str]:
    """Say what `--gpus` comes to on this machine.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    devices, cores = hardware.cuda_devices(), hardware.cpu_count()
    if devices:
        needed = world.started * world.gpus
        if needed > len(devices):
            spares = f" --spares {world.spares}" if world.spares else ""
            raise UserError(
                f"--nodes {world.span} --gpus {world.gpus}{spares} needs {needed} GPUs, this machine has {len(devices)}"
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

"""The memory that a plan needs, a rank: sizes are measured in a process of its own, as torch stays out of this one.

What was measured is kept in the user's cache, under the digest of all that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import msgspec

from fgtrain import __version__
from fgtrain.memory import Sizes, estimate, spell
from fgtrain.parts import to_json
from fgtrain.recipe import Recipe
from fgtrain.strategies.fsdp import FSDP

_TIMEOUT_S = 300.0
_FORM = 3  # of what is kept: what counts as a size has changed twice


def memory_line(recipe: Recipe, world: int) -> str:
    """Return what each of `world` ranks needs, or why that is not known."""
    try:
        sizes = _sizes(recipe)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"memory     not known here: {error}"
    return f"memory     {spell(estimate(sizes, recipe, world))}"


def _sizes(recipe: Recipe) -> Sizes:
    file = cache("sizes") / f"{_key(recipe)}.json"
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=Sizes)
    argv = [sys.executable, "-m", "fgtrain.sizes"]
    done = subprocess.run(argv, input=to_json(recipe), capture_output=True, check=False, timeout=_TIMEOUT_S)
    if done.returncode:
        raise ValueError((done.stderr.decode(errors="replace").strip().splitlines() or ["it died"])[-1])
    sizes = msgspec.json.decode(done.stdout.splitlines()[-1], type=Sizes)
    with suppress(OSError):  # a cache that cannot be written is none
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        fresh.write_bytes(to_json(sizes))
        fresh.replace(file)
    return sizes


def cache(kind: str) -> Path:
    """Return the folder for what was found out about recipes. Source: XDG Base Directory Specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fglaunch" / kind


def versions() -> list[str]:
    """Return the versions of what sizes, and all that is found out by building a network, depend on."""
    found = [__version__]
    for package in ("torch", "timm"):
        with suppress(metadata.PackageNotFoundError):
            found.append(metadata.version(package))
    return found


def _key(recipe: Recipe) -> str:
    sharded = recipe.strategy if isinstance(recipe.strategy, FSDP) else None  # how else state lies changes no size
    how = (recipe.precision, recipe.checkpointing, sharded, versions())
    parts = (recipe.model, recipe.data.crop, recipe.batch.micro, _FORM, *how)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

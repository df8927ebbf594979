"""Whether a recipe's model takes its pictures, asked of a process of its own while the launching side does other work.

That it does is kept in the user's cache: the next start of such a recipe costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fgtrain.errors import RecipeError
from fgtrain.parts import to_json
from fgtrain.recipe import Recipe
from launcher.sizing import cache, versions

_ARGV = (sys.executable, "-m", "fgtrain.trial")
_REFUSED = 3  # see fgtrain.trial, which imports torch
_TIMEOUT_S = 120.0


@contextmanager
def tried(recipe: Recipe, path: Path) -> Iterator[None]:
    """Try the model of the recipe in `path` on its pictures while what is inside runs: importing torch takes seconds.

    Where that cannot be tried, without torch or in time, it is no obstacle: a worker will find out.

    Raises:
        RecipeError: at the end, if the recipe cannot be trained.
    """
    known = cache("trials") / _key(recipe)
    if known.exists() or importlib.util.find_spec("torch") is None:
        yield
        return
    pipe = subprocess.PIPE
    with subprocess.Popen(_ARGV, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdin
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(to_json(recipe))
            process.stdin = None  # it is told already
            yield
            answer, _ = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return
        finally:
            process.kill()
    if process.returncode == _REFUSED:
        raise RecipeError(f"{path}: {answer.decode().strip().splitlines()[-1]}")
    if process.returncode == 0:
        with suppress(OSError):  # a cache that cannot be written is none
            known.parent.mkdir(parents=True, exist_ok=True)
            known.touch()


def _key(recipe: Recipe) -> str:
    parts = (recipe.model, recipe.data.crop, recipe.checkpointing, versions())
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

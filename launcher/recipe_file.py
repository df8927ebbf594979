"""Loading a recipe: its file is run once, on the launching side, and may not import anything heavy."""

from __future__ import annotations

import builtins
import importlib.abc
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec

from fgtrain.errors import FglaunchError, RecipeError
from fgtrain.overrides import apply
from fgtrain.parts import convert, leaves, locate
from fgtrain.recipe import Recipe
from launcher.recipe_check import flaws

HEAVY = frozenset(
    {
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "scipy",
        "sklearn",
        "pandas",
        "cv2",
        "PIL",
        "tensorflow",
        "jax",
        "deepspeed",
        "mmdet",
        "mmcv",
        "mmengine",
        "boto3",
        "botocore",
        "s3fs",
        "fsspec",
        "google",
        "azure",
        "sky",
        "lightning",
        "accelerate",
    }
)


class _Refused(ImportError):
    """A heavy import in a recipe."""


def split_target(target: str) -> tuple[Path, str]:
    """Split `file.py:NAME` into file and constant; the constant is RECIPE if none is named."""
    path, colon, name = target.rpartition(":")
    if colon and path.endswith(".py") and name.isidentifier():
        return Path(path), name
    return Path(target), "RECIPE"


def load(target: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe of `file.py` or `file.py:NAME`, with overrides applied.

    Raises:
        RecipeError: missing, broken, importing what it may not, holding no recipe, overridden wrongly, or with a value
            that makes no sense.
    """
    path, name = split_target(target)
    module = _run(path)
    recipe = getattr(module, name, None)
    if not isinstance(recipe, Recipe):
        there = [n for n, v in vars(module).items() if isinstance(v, Recipe)]
        hint = f"; it has {', '.join(f'{path}:{n}' for n in there)}" if there else ""
        raise RecipeError(f"{path}: no Recipe called {name}{hint}")
    for assignment in overrides:
        try:
            recipe = apply(recipe, assignment)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None
    recipe = _validated(recipe, path)
    if flaw := next(flaws(recipe), None):
        raise RecipeError(f"{path}: {flaw}")
    return recipe


def _validated(recipe: Recipe, path: Path) -> Recipe:
    """Check every value against its annotation: Python itself does not, when a recipe is written."""
    for field, value in leaves(recipe):
        try:
            msgspec.to_builtins(value)
        except TypeError:
            raise RecipeError(f"{path}: {field}: a {type(value).__name__} cannot be part of a recipe") from None
    try:
        return convert(msgspec.to_builtins(recipe), Recipe)
    except msgspec.ValidationError as error:
        field, what = locate(error)
        raise RecipeError(f"{path}: {field}: {what}") from None


def _run(path: Path) -> ModuleType:
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise RecipeError(f"{path}:{line}: {getattr(error, 'msg', error)}") from None
    return _execute(code, path)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    found = sorted(p.name for p in folder.glob("*.py") if p.name != "__init__.py") if folder else []
    return f"; {folder} has {', '.join(found[:8])}" if found else ""


def _execute(code: CodeType, path: Path) -> ModuleType:
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        with _guard() as guarded_import, _beside(path):
            vars(module)["__builtins__"] = vars(builtins) | {"__import__": guarded_import}
            exec(code, vars(module))
    except _Refused as error:
        raise RecipeError(
            f"{path}:{_line(error, path)}: a recipe may not import {error.name} at module level;"
            " describe what to train with parts, and let fgtrain import it on the nodes"
        ) from None
    except FglaunchError as error:
        raise RecipeError(f"{path}:{_line(error, path)}: {error}") from None
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{path}:{_line(error, path)}: {type(error).__name__}: {error}") from None
    return module


def _line(error: BaseException, path: Path) -> int:
    """Return the recipe's own line in an exception's traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path) and f.lineno]
    return lines[-1] if lines else 1


@contextmanager
def _guard() -> Iterator[Any]:
    """Refuse heavy imports: in the recipe itself by its own `__import__`, in what it imports by a finder."""

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
            _refuse(fullname)
            return None

    def guarded_import(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        level = args[3] if len(args) > 3 else kwargs.get("level", 0)
        if not level:
            _refuse(name)
        return builtins.__import__(name, *args, **kwargs)

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield guarded_import
    finally:
        sys.meta_path.remove(finder)


def _refuse(name: str) -> None:
    if name.split(".")[0] in HEAVY:
        raise _Refused(f"{name} is refused", name=name)


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a recipe import its neighbours, as `python file.py` would; the next recipe may have others of that name."""
    folder, before = path.resolve().parent, set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]

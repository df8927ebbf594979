"""Overrides: `optim.lr=3e-4` applied to a recipe, parsed by the annotation of the field it names."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, TypeVar

import msgspec

from fgtrain.errors import RecipeError
from fgtrain.parts import Part, convert

P = TypeVar("P", bound=Part)


def apply(part: P, assignment: str) -> P:
    """Return a copy of a recipe (or part) with one field set.

    Args:
        part: where the path starts.
        assignment: `path=value`; the value is read as the field's type: numbers, true / false, null, plain strings, and
            JSON (or, for lists of strings, a comma-separated list) for everything else.

    Raises:
        RecipeError: not an assignment, no such field (with the nearest name), or a value of the wrong type.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {assignment}: write path=value, for example --set optim.lr=3e-4")
    return _set(part, path.strip().split("."), text, path.strip())


def _set(part: P, names: list[str], text: str, path: str) -> P:
    annotations = typing.get_type_hints(type(part))
    name, rest = names[0], names[1:]
    if name not in part.__struct_fields__:
        raise RecipeError(_unknown(part, name, path))
    if not rest:
        return msgspec.structs.replace(part, **{name: _parse(text, annotations[name], path)})
    child = getattr(part, name)
    if child is None:
        child = _make_default(annotations[name], path)
    if not isinstance(child, Part):
        raise RecipeError(f"--set {path}: {name} is a plain value and has no field {rest[0]!r}")
    return msgspec.structs.replace(part, **{name: _set(child, rest, text, path)})


def _unknown(part: Part, name: str, path: str) -> str:
    fields = list(part.__struct_fields__)
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    hint = f"did you mean {path.replace(name, near[0])!r}?" if near else f"there are {', '.join(fields)}"
    return f"--set {path}: {type(part).__name__} has no field {name!r}; {hint}"


def _make_default(annotation: Any, path: str) -> Part:
    """Make the part of an optional field that is unset, so that `ema.decay=0.99` works where `ema` is null."""
    options = [a for a in typing.get_args(annotation) if isinstance(a, type) and issubclass(a, Part)]
    if len(options) == 1:
        try:
            return options[0]()
        except TypeError as error:
            raise RecipeError(f"--set {path}: set it in the recipe first ({error})") from None
    raise RecipeError(f"--set {path}: nothing is there to change; set it in the recipe first")


def _parse(text: str, annotation: Any, path: str) -> Any:
    try:
        return convert(_raw(text, annotation), annotation, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError, TypeError) as error:
        wanted = _spell(annotation)
        raise RecipeError(f"--set {path}={text}: {path} is {wanted}, not {text!r} ({error})") from None


def _raw(text: str, annotation: Any) -> Any:
    """Turn the text into what msgspec converts from: containers and parts from JSON, all else stays a string."""
    if text.startswith(("[", "{")):
        return msgspec.json.decode(text)
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if any(typing.get_origin(o) is tuple for o in options) and text != "null":
        return [t.strip() for t in text.split(",")] if text else []
    return text


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _spell(annotation: Any) -> str:
    """Write a type the way a user would read it."""
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    return getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)

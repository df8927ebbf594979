"""Overrides: `optim.lr=3e-4` applied to a recipe, parsed by the annotation of the field it names."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, TypeVar

import msgspec

from fgtrain.errors import RecipeError
from fgtrain.parts import Family, Part, convert, locate

P = TypeVar("P", bound=Part)


def apply(part: P, assignment: str) -> P:
    """Return a copy of a recipe (or part) with one field set.

    Args:
        part: where the path starts.
        assignment: `path=value`; the value is read as the field's type: numbers, true / false, null, plain strings, and
            JSON for everything else; lists also comma-separated, and a part with nothing but defaults by its kind.

    Raises:
        RecipeError: not an assignment, no such field (with the nearest name), or a value of the wrong type.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {assignment}: write path=value, for example --set optim.lr=3e-4")
    return _set(part, path.strip().split("."), 0, text)


def _set(part: P, names: list[str], depth: int, text: str) -> P:
    annotations = typing.get_type_hints(type(part))
    path, name, rest = ".".join(names), names[depth], names[depth + 1 :]
    if name not in part.__struct_fields__:
        raise RecipeError(_unknown(part, names, depth))
    if not rest:
        return msgspec.structs.replace(part, **{name: _parse(text, annotations[name], path)})
    child = getattr(part, name)
    if child is None:
        child = _make_default(annotations[name], path)
    if not isinstance(child, Part):
        raise RecipeError(f"--set {path}: {name} is a plain value and has no field {rest[0]!r}")
    return msgspec.structs.replace(part, **{name: _set(child, names, depth + 1, text)})


def _unknown(part: Part, names: list[str], depth: int) -> str:
    fields, name = list(part.__struct_fields__), names[depth]
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    nearest = ".".join([*names[:depth], *near, *names[depth + 1 :]])
    hint = f"did you mean {nearest!r}?" if near else f"there are {', '.join(fields)}"
    return f"--set {'.'.join(names)}: {type(part).__name__} has no field {name!r}; {hint}"


def _make_default(annotation: Any, path: str) -> Part:
    """Make the part of an optional field that is unset, so that `ema.decay=0.99` works where `ema` is null."""
    options = [a for a in _options(annotation) if isinstance(a, type) and issubclass(a, Part)]
    if len(options) == 1:
        try:
            return options[0]()
        except TypeError as error:
            raise RecipeError(f"--set {path}: set it in the recipe first ({error})") from None
    raise RecipeError(f"--set {path}: nothing is there to change; set it in the recipe first")


def _parse(text: str, annotation: Any, path: str) -> Any:
    try:
        return convert(_raw(text, annotation), annotation, strict=False)
    except msgspec.ValidationError as error:
        below, what = locate(error)
        where = f"{path}{'' if below.startswith('[') or not below else '.'}{below}"
        raise RecipeError(f"--set {path}={text}: {path} is {_spell(annotation)}; {where}: {what}") from None
    except msgspec.DecodeError as error:
        raise RecipeError(f"--set {path}={text}: {path} is {_spell(annotation)}; {error}") from None


def _raw(text: str, annotation: Any) -> Any:
    """Turn the text into what msgspec converts from: containers and parts from JSON, all else stays a string."""
    options = _options(annotation)
    if types.NoneType in options and text.strip() == "null":
        return None
    if str in options:
        return text
    text = text.strip()
    if text.startswith(("[", "{")):
        return msgspec.json.decode(text)
    if any(typing.get_origin(o) is tuple for o in options):
        return [t.strip() for t in text.split(",")] if text else []
    if any(isinstance(o, type) and issubclass(o, Part | Family) for o in options) and text.isidentifier():
        return {"kind": text}
    return text


def _options(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type that is not a union."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _spell(annotation: Any) -> str:
    """Write a type the way a user would read it."""
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    options = _options(annotation)
    if len(options) > 1:
        return " or ".join(map(_spell, options))
    if annotation is types.NoneType:
        return "null"
    is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__name__ if is_plain else str(annotation)

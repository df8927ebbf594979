"""Parts: the frozen, typed building blocks of a recipe, and their JSON form.

A *family* (data sets, models, ...) is open: each member is one file in the family's package, found by the
`kind` in its JSON, which is the member's class name in lower case and the name of its file.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar, dataclass_transform

import msgspec

from fgtrain.errors import RecipeError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Part(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag=str.lower,
):
    """Base of every part of a recipe: immutable, keyword-only, and equal by value."""


class Family:
    """Mix-in that marks an open set of parts, one file each under `package`."""

    __slots__ = ()
    package: ClassVar[str]


def member(family: type[Family], kind: str) -> type[Part]:
    """Return the part of `family` whose file is called `kind`.

    Raises:
        RecipeError: no such file, or the file holds no such class.
    """
    known = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(family.package).__path__))
    if kind not in known:
        raise RecipeError(f"{family.package} has no part called {kind!r}; there are {', '.join(known)}")
    module = importlib.import_module(f"{family.package}.{kind}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Part) and value.__struct_config__.tag == kind:
            return value
    raise RecipeError(f"{family.package}.{kind} defines no part whose lower-case name is {kind!r}")


def _decode_member(family: Any, raw: Any) -> Any:
    """Decode a member of an open family (a msgspec `dec_hook`)."""
    if isinstance(family, type) and issubclass(family, Family):
        if isinstance(raw, family):
            return raw
        if isinstance(raw, dict) and isinstance(raw.get("kind"), str):
            try:
                return convert(raw, member(family, raw["kind"]))
            except (msgspec.ValidationError, RecipeError) as error:
                raise ValueError(str(error)) from error  # a plain ValueError, so that msgspec adds the way to here
    raise TypeError(f"cannot read a {getattr(family, '__name__', family)} from {raw!r}")


def locate(error: msgspec.ValidationError) -> tuple[str, str]:
    """Split a conversion error into the dotted path of the field and what is wrong with its value."""
    what, *places = str(error).split(" - at `$")  # the innermost place comes first
    path = "".join(place.removesuffix("`") for place in reversed(places)).removeprefix(".")
    return path, (what[:1].lower() + what[1:]).replace("`", "")


def convert(raw: Any, type_: type[T], *, strict: bool = True) -> T:
    """Build a `type_` from plain JSON values; `strict=False` also reads numbers and booleans from strings.

    Raises:
        msgspec.ValidationError: the message names the field and the type that was expected.
    """
    return msgspec.convert(raw, type_, strict=strict, dec_hook=_decode_member)


def to_json(part: Any) -> bytes:
    """Encode as canonical JSON: the same value always gives the same bytes."""
    return msgspec.json.encode(part, order="deterministic")


def from_json(data: bytes, type_: type[T]) -> T:
    """Decode what `to_json` wrote."""
    return msgspec.json.decode(data, type=type_, dec_hook=_decode_member)


def digest(part: Any) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(to_json(part)).hexdigest()


def leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of everything in a part that is not itself a part."""
    for field in msgspec.structs.fields(part):
        value, path = getattr(part, field.name), f"{prefix}{field.name}"
        if isinstance(value, Part):
            yield from leaves(value, path + ".")
        else:
            yield path, value

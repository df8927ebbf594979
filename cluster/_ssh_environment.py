"""What an environment on a host is to hold, and how it is called."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cluster import ClusterError

_DISTRIBUTION = "fglaunch"
_LOCK = "constraints.txt"


class Environment(NamedTuple):
    """A requirements and a constraints file's text, and options for the installer; `key` names them all."""

    key: str
    requirements: str
    constraints: str
    options: tuple[str, ...]


def environment(requirements: str, constraints: str, options: Sequence[str]) -> Environment:
    """Name an environment by all that decides what it holds. Pure."""
    lines = [_without_comments(requirements), _without_comments(constraints), *options]
    key = hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]
    return Environment(key, requirements, constraints, tuple(options))


def wanted(
    project: Path,
    package_root: Path,
    requirements: str,
    constraints: str,
    options: Sequence[str],
    extras: Sequence[str] = ("train",),
) -> Environment:
    """Return the environment that a run of this project needs.

    Args:
        project: the folder that settings' paths are relative to.
        package_root: where this project's own packages lie; its lock file counts where it has one.
        requirements: a file of the user's, or empty: what training needs.
        constraints: a file of the user's, or empty: the lock file, or else the versions that are installed here.
        options: for the installer.
        extras: what is needed of our own, where requirements do not say.

    Raises:
        ClusterError: a file cannot be read.
    """
    needs = _read(project / requirements) if requirements else "\n".join(own_requirements(_declared(), extras))
    lock = next((f for f in (project / _LOCK, package_root / _LOCK) if f.is_file()), None)
    if constraints or lock:
        pins = _read(project / constraints if constraints else lock or project)
    else:
        pins = "\n".join(_installed(needs))
    return environment(needs, pins, options)


def own_requirements(declared: Sequence[str], extras: Sequence[str]) -> list[str]:
    """Return what nodes need of our own declared requirements (PEP 508): ours, and those of extras. Pure."""
    found = []
    for line in declared:
        need, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            found.append(need.strip() if extra else line.strip())
    return sorted(set(found))


def _declared() -> list[str]:
    try:
        return metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise ClusterError("what training needs is not known: name a file in requirements, in clusters.toml") from error


def _installed(requirements: str) -> list[str]:
    """Pin what is required to the versions that are installed here, where they are."""
    pins = []
    for name in re.findall(r"(?m)^[\w.-]+", requirements):
        try:
            pins.append(f"{name}=={metadata.version(name).split('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return pins


def _without_comments(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"{file}: {error.strerror}; see requirements and constraints in clusters.toml") from error

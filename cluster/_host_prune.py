"""On a node: old copies of the code and old environments are removed. Standard library, and Python 3.8 will do.

    <cache>/used-by/<name>           a link to each run's folder whose links lead into the cache

Kept are the newest few, whatever was used within a day, and what a run's folder leads to in which a program runs, or
that was written to within a day: its agents may be about to start again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from cluster import _host_processes as processes

_FRESH_S = 24 * 3600.0


def prune(cache: str, folder: str, keep: int, now: float | None = None) -> list[str]:
    """Note that a run's folder uses the cache, and remove what is old there; returns what was, as `code/<digest>`.

    Args:
        cache: the cache folder.
        folder: a node's folder of a run, with its links.
        keep: how many copies of the code, and how many environments, are kept at least; 0: all.
        now: Unix seconds, by this node's clock.
    """
    now = time.time() if now is None else now
    root = Path(cache)
    _note_use(root, folder)
    old = [*_old(root, "code", keep, now), *_old(root, "envs", keep, now)] if keep > 0 else []
    if not old:
        return []
    with _alone(root) as alone:
        used = _used(root, now) if alone else None
        return [] if used is None else [f"{p.parent.name}/{p.name}" for p in old if p not in used and _remove(p)]


def _note_use(root: Path, folder: str) -> None:
    note = root / "used-by" / hashlib.sha256(folder.encode()).hexdigest()[:16]
    note.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        note.symlink_to(folder)


def _old(root: Path, kind: str, keep: int, now: float) -> list[Path]:
    """Return what of a kind is neither among the newest nor used lately."""
    at = {p.parent / p.stem: p.stat().st_mtime for p in (root / kind).glob("*.json")}
    at.update({p.parent: p.stat().st_mtime for p in (root / kind).glob("*/.complete")})
    newest_first = sorted(at, key=lambda p: (-at[p], p.name))
    return [p for p in newest_first[keep:] if now - at[p] > _FRESH_S]


def _used(root: Path, now: float) -> set[Path]:
    """Return what runs may still need."""
    found = set()
    for note in (root / "used-by").iterdir():
        folder = Path(os.readlink(str(note)))  # noqa: PTH115  (Path.readlink came with 3.9)
        if not folder.is_dir():
            note.unlink()
        elif _lives(folder, now):
            found |= {Path(os.path.realpath(str(link))) for link in folder.iterdir() if link.is_symlink()}
    return {root / p.relative_to(os.path.realpath(str(root))) for p in found if _within(p, root)}


def _within(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(str(root))) in path.parents


def _lives(folder: Path, now: float) -> bool:
    touched = max((f.lstat().st_mtime for f in folder.iterdir()), default=0.0)
    names = [p.name for p in (folder / ".processes").glob("*")]
    return now - touched < _FRESH_S or any(processes.find(str(folder), name) for name in names)


def _remove(place: Path) -> bool:
    """Remove a copy or an environment, its record first: nobody must believe that it is whole."""
    if place.parent.name == "code":
        place.with_name(f"{place.name}.json").unlink()
        return _clear(place)
    with place.with_name(f"{place.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody makes it
            return False
        (place / ".complete").unlink()
        for name in ("requirements.txt", "constraints.txt", "log"):
            with contextlib.suppress(FileNotFoundError):
                place.with_name(f"{place.name}.{name}").unlink()
        return _clear(place)


def _clear(place: Path) -> bool:
    gone = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    place.rename(gone)
    shutil.rmtree(str(gone), ignore_errors=True)
    return True


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[bool]:
    """Tell whether nobody else prunes."""
    with (root / "prune.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True

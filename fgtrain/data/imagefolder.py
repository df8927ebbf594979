"""Pictures in folders: `train/<class>/...` and `val/<class>/...`, the class being the folder.

Names are compared and kept in Unicode's NFC, whatever the file system stores: macOS writes decomposed names
(NFD), so the same folder copied from a Mac would otherwise be another class.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fgtrain.data import Index, Sample
from fgtrain.errors import UserError
from fgtrain.objects import ObjectPath, is_url, open_root
from fgtrain.pictures import SUFFIXES, PictureFiles

_VAL_NAMES = ("val", "valid", "test")
_LAYOUT = "pictures belong in train/<class>/ and val/<class>/"


class ImageFolder(PictureFiles, frozen=True):
    """Pictures in `train/` and `val/` below `root`; in place of `val/` also `valid/` or `test/`.

    A class is the path, relative to the split, of a folder that directly holds pictures: `water/heron` and
    `tree/heron` are two. Classes and samples are sorted by their names. Hidden files are ignored, links are
    followed.
    """

    def folder(self) -> Path | ObjectPath:
        """Return the root.

        Raises:
            UserError: it is not there.
        """
        return open_root(self.root) if is_url(self.root) else _root(self.root)

    def path(self, sample: Sample) -> Path | ObjectPath:
        """Return where the picture is, in whichever Unicode form the file system has its name."""
        if is_url(self.root):
            return open_root(self.root) / sample.name
        path = _root(self.root) / sample.name
        return path if path.exists() else _as_stored(_root(self.root), sample.name) or path

    def index(self) -> Index:
        """List classes and samples.

        Raises:
            UserError: a folder is missing or empty, or train and val have different classes.
        """
        root = self.folder()
        val_name = _val_name(root)
        if not (root / "train").is_dir() or val_name is None:
            lacking = "val" if val_name is None else "train"
            raise UserError(f"data.root={root}: there is no {lacking}/ folder; {_LAYOUT}")
        train, val = _scan(root, "train"), _scan(root, val_name)
        classes = sorted({found.class_ for found in train})
        _require_same(root, set(classes), {found.class_ for found in val}, val_name)
        label_of = {name: label for label, name in enumerate(classes)}
        return Index(tuple(classes), _samples(train, label_of), _samples(val, label_of))

    def passed_over(self) -> list[str]:
        """See `Data.passed_over`: files with the endings of no picture, but for hidden ones and what links lead to."""
        root = self.folder()
        found: list[str] = []
        for split in filter(None, ("train", _val_name(root))):
            below = (root / split).below() if isinstance(root, ObjectPath) else _below(root / split)
            visible = (name for name in below if f"/{name}".find("/.") < 0)
            found += sorted(f"{split}/{name}" for name in visible if not name.lower().endswith(SUFFIXES))
        return found


class _Found(NamedTuple):
    """A picture: its name relative to the root and its class, both in NFC."""

    name: str
    class_: str


@lru_cache(maxsize=64)  # `read` asks once a picture
def _root(root: str) -> Path:
    """Return the root if it is a folder."""
    if not root:
        raise UserError(f"data.root is empty; set it to the folder of pictures ({_LAYOUT})")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root}: there is no such folder; {_LAYOUT}")
    return folder


def _val_name(root: Path | ObjectPath) -> str | None:
    """Return which folder is for validation."""
    return next((name for name in _VAL_NAMES if (root / name).is_dir()), None)


def _below(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to it."""
    for place, _, names in os.walk(folder):
        here = Path(place).relative_to(folder).as_posix()
        yield from names if here == "." else (f"{here}/{name}" for name in names)


def _samples(found: list[_Found], label_of: dict[str, int]) -> tuple[Sample, ...]:
    """Label the pictures of one split, sorted by name."""
    return tuple(Sample(one.name, label_of[one.class_]) for one in sorted(found))


def _scan(root: Path | ObjectPath, split: str) -> list[_Found]:
    """List the pictures of one split."""
    if isinstance(root, ObjectPath):
        found = list(_listed(root / split, split))
    else:
        found = list(_walk(root / split, split, "", frozenset()))
    if not found:
        raise UserError(f"{root / split}: holds no pictures ({', '.join(SUFFIXES)}); {_LAYOUT}")
    return found


def _listed(folder: ObjectPath, split: str) -> Iterator[_Found]:
    """List pictures in a store. Keys have no folders of their own, so none can be empty."""
    for name in folder.below():
        class_, _, last = name.rpartition("/")
        if f"/{name}".find("/.") >= 0 or not last.lower().endswith(SUFFIXES):
            continue
        if not class_:
            raise UserError(f"{folder / name}: lies in no class folder; {_LAYOUT}")
        yield _Found(f"{split}/{name}", class_)


def _walk(folder: Path, split: str, class_: str, above: frozenset[tuple[int, int]]) -> Iterator[_Found]:
    """List pictures below a folder; a link to one of the folders `above`, on the way here, is a loop."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    folders, pictures = _entries(folder)
    if pictures and not class_:
        raise UserError(f"{folder / next(iter(pictures.values()))}: lies in no class folder; {_LAYOUT}")
    if class_ and not folders and not pictures:
        raise UserError(f"{folder}: class folder without pictures ({', '.join(SUFFIXES)}); fill it or remove it")
    for name in pictures:
        yield _Found(f"{split}/{class_}/{name}", class_)
    for name, stored in folders.items():
        yield from _walk(folder / stored, split, f"{class_}/{name}" if class_ else name, above | {here})


def _entries(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the folders and the pictures in a folder, each as {name in NFC: name as stored}."""
    folders: dict[str, str] = {}
    pictures: dict[str, str] = {}
    for name, entry in _stored(folder).items():
        # A broken link is no folder; it counts as a picture, and inspection reports it missing.
        if entry.is_dir():
            folders[name] = entry.name
        elif name.lower().endswith(SUFFIXES):
            pictures[name] = entry.name
    return folders, pictures


def _stored(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Map the visible names in a folder, in NFC, to the entries that have them."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    names: dict[str, os.DirEntry[str]] = {}
    for entry in visible:
        name = unicodedata.normalize("NFC", entry.name)
        if not _is_text(name):
            raise UserError(f"{folder}: the name {os.fsencode(entry.name)!r} is not UTF-8; rename it")
        if name in names:
            raise UserError(f"{folder}: holds {name!r} twice, in two Unicode forms; rename or merge one")
        names[name] = entry
    return names


def _is_text(name: str) -> bool:
    """Tell whether a name was valid UTF-8: Python smuggles other bytes in as surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _require_same(root: Path | ObjectPath, train: set[str], val: set[str], val_name: str) -> None:
    """Complain unless both splits have the same classes."""
    parts = [
        f"{split}/ lacks {', '.join(sorted(missing))}"
        for split, missing in (("train", val - train), (val_name, train - val))
        if missing
    ]
    if parts:
        raise UserError(f"data.root={root}: the class folders differ: {'; '.join(parts)}; make them the same")


def _as_stored(root: Path, name: str) -> Path | None:
    """Find a name given in NFC, part by part; None if there is no such file."""
    path = root
    for part in name.split("/"):
        stored = _names_in(path).get(part)
        if stored is None:
            return None
        path = path / stored
    return path


@lru_cache(maxsize=4096)
def _names_in(folder: Path) -> dict[str, str]:
    """List a folder once: only names that are not stored in NFC come this way, then many from one folder."""
    return {name: entry.name for name, entry in _stored(folder).items()} if folder.is_dir() else {}

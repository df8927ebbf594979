"""CUB-200-2011: 200 species of birds, 5,994 training and 5,794 test pictures, in its official layout.

Source: C. Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001 (the layout is in its README).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fgtrain.data import Index, Sample
from fgtrain.errors import UserError
from fgtrain.objects import ObjectPath, is_url, open_root
from fgtrain.pictures import PictureFiles

_GET = "`fglaunch data get cub200` downloads it"
_AGAIN = "mend the line, or get the data set anew with `fglaunch data get cub200`"


class Cub200(PictureFiles, frozen=True):
    """CUB-200-2011, or a subset in the same layout.

    `root` is the folder that holds `images.txt`, or the one above it that holds `CUB_200_2011/`. Samples are
    named relative to the former, so both ways give the same index. The official test pictures are the `val`
    split.
    """

    def folder(self) -> Path | ObjectPath:
        """Return the folder that holds `images.txt`.

        Raises:
            UserError: it is not there.
        """
        return _find(self.root)

    def index(self) -> Index:
        """List classes in the order of their official ids, samples in the order of theirs.

        Raises:
            UserError: a file or a picture is missing, or the files contradict each other.
        """
        folder = self.folder()
        classes = _table(folder / "classes.txt", "<class id> <name>")
        labels = _labels(folder, {id_: label for label, id_ in enumerate(sorted(classes))})
        index = _split(folder, tuple(classes[id_].value for id_ in sorted(classes)), labels)
        if self.on_bad_image == "fail":
            _require_pictures(folder, index)
        return index


class _Row(NamedTuple):
    """The right-hand side of a line, and the line's number for messages."""

    value: str
    line: int


@lru_cache(maxsize=64)  # `read` asks once a picture
def _find(root: str) -> Path | ObjectPath:
    """Return the folder that holds `images.txt`."""
    if not root:
        raise UserError(f"data.root is empty; set it to the folder of CUB-200-2011 ({_GET})")
    top = open_root(root) if is_url(root) else Path(root).expanduser()
    if not top.is_dir():
        raise UserError(f"data.root={root}: there is no such folder; {_GET}")
    for folder in (top, top / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder
    raise UserError(f"data.root={root}: no images.txt in it or in CUB_200_2011/ below it; {_GET}")


def _table(file: Path | ObjectPath, form: str) -> dict[int, _Row]:
    """Read lines of `<id> <value>`; `form` describes them in messages."""
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {_GET}") from error
    rows: dict[int, _Row] = {}
    for number, raw in enumerate(lines, 1):
        words = raw.decode("utf-8", "backslashreplace").split(maxsplit=1)
        if not words:
            continue
        if len(words) != 2 or not words[0].isdecimal():
            raise UserError(f"{file}:{number}: expected `{form}`, found {' '.join(words)!r}; {_AGAIN}")
        if int(words[0]) in rows:
            raise UserError(f"{file}:{number}: id {words[0]} is listed twice; {_AGAIN}")
        rows[int(words[0])] = _Row(words[1].rstrip(), number)
    return rows


def _labels(folder: Path | ObjectPath, label_of: Mapping[int, int]) -> dict[int, int]:
    """Read the label of each image id."""
    file = folder / "image_class_labels.txt"
    labels = {}
    for image, row in _table(file, "<image id> <class id>").items():
        if not row.value.isdecimal():
            raise UserError(
                f"{file}:{row.line}: expected `<image id> <class id>`, found '{image} {row.value}'; {_AGAIN}"
            )
        if int(row.value) not in label_of:
            raise UserError(f"{file}:{row.line}: class id {row.value} is not in classes.txt; {_AGAIN}")
        labels[image] = label_of[int(row.value)]
    return labels


def _split(folder: Path | ObjectPath, classes: tuple[str, ...], labels: Mapping[int, int]) -> Index:
    """Join images, labels and split. Labels of images that are not listed are let be: subsets have them."""
    listed, sides = folder / "images.txt", folder / "train_test_split.txt"
    train_flags = _table(sides, "<image id> <0 or 1>")
    samples: dict[str, list[Sample]] = {"0": [], "1": []}
    seen: set[str] = set()
    for image, row in sorted(_table(listed, "<image id> <path>").items()):
        for where, ids in (("image_class_labels.txt", labels), ("train_test_split.txt", train_flags)):
            if image not in ids:
                raise UserError(f"{listed}:{row.line}: image id {image} is not in {where}; {_AGAIN}")
        flag = train_flags[image]
        if flag.value not in samples:
            found = f"{image} {flag.value}"
            raise UserError(f"{sides}:{flag.line}: expected `<image id> <0 or 1>`, found {found!r}; {_AGAIN}")
        if row.value in seen:
            raise UserError(f"{listed}:{row.line}: {row.value} is listed twice; {_AGAIN}")
        seen.add(row.value)
        samples[flag.value].append(Sample(f"images/{row.value}", labels[image]))
    for flag_value, side in (("1", "training"), ("0", "test")):
        if not samples[flag_value]:
            raise UserError(f"{sides}: no image is marked {flag_value} ({side}); {_AGAIN}")
    return Index(classes, tuple(samples["1"]), tuple(samples["0"]))


def _require_pictures(folder: Path | ObjectPath, index: Index) -> None:
    """Check that every listed picture is there: one listing a class folder, not a `stat` a picture."""
    names = [sample.name for sample in index.train + index.val]
    there = {name for parent in {n.rpartition("/")[0] for n in names} for name in _listing(folder, parent)}
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{folder / missing[0]}: listed but missing, {len(missing)} of {len(names)} pictures in all; "
            "get the data set anew with `fglaunch data get cub200`, or leave them out with "
            "`--set data.on_bad_image=skip`"
        )


def _listing(folder: Path | ObjectPath, parent: str) -> list[str]:
    """Name everything in one folder, relative to the data set's; nothing if it is missing."""
    if isinstance(folder, ObjectPath):
        return [f"{parent}/{name}" for name in (folder / parent).below()]
    try:
        with os.scandir(folder / parent) as entries:
            return [f"{parent}/{entry.name}" for entry in entries]
    except OSError:
        return []

"""CUB-200-2011 in its official layout: the real subset, and every way a copy can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fgtrain.data import BadImage, Data
from fgtrain.data.cub200 import Cub200
from fgtrain.dataindex import usable
from fgtrain.errors import UserError
from fgtrain.parts import from_json, to_json
from tests.picture_files import real_data, write_picture

Edit = Callable[[Path], object]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Four pictures of two classes whose ids do not start at 1, in files with every harmless oddity."""
    folder = tmp_path / "CUB_200_2011"
    names = ["007.Gull/a 1.jpg", "007.Gull/b.jpg", "012.Tern/c.jpg", "012.Tern/d.jpg"]
    for name in names:
        write_picture(folder / "images" / name)
    # Not in order, with a byte order mark, Windows line ends and an empty line.
    (folder / "images.txt").write_text(
        "".join(f"{i} {name}\r\n" for i, name in sorted(enumerate(names, 1), reverse=True)) + "\r\n",
        "utf-8-sig",
    )
    (folder / "image_class_labels.txt").write_text("1 7\n2 7\n3 12\n4 12\n99 7\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 0\n")
    (folder / "classes.txt").write_text("12 012.Tern\n7 007.Gull\n")
    return folder


def test_the_official_files_are_joined(birds: Path) -> None:
    index = Cub200(root=str(birds)).index()
    assert index.classes == ("007.Gull", "012.Tern")
    assert index.train == (("images/007.Gull/a 1.jpg", 0), ("images/012.Tern/c.jpg", 1))
    assert index.val == (("images/007.Gull/b.jpg", 0), ("images/012.Tern/d.jpg", 1))


def test_the_folder_and_the_one_above_give_the_same_index(birds: Path) -> None:
    data, above = Cub200(root=str(birds)), Cub200(root=str(birds.parent))
    assert data.index() == above.index()
    assert above.read(above.index().val[0]).shape == (24, 32, 3)


def test_it_is_found_by_its_kind() -> None:
    data = Cub200(root="x", crop=448)
    assert from_json(to_json(data), Data) == data  # type: ignore[type-abstract]


def change(name: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text("utf-8-sig")
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


BROKEN: dict[str, tuple[Edit, str]] = {
    "file missing": (lambda f: (f / "classes.txt").unlink(), r"classes\.txt: No such file"),
    "no value": (change("classes.txt", "12 012.Tern", "12"), r"classes\.txt:1: expected .* found '12'"),
    "id no number": (change("classes.txt", "7 007.Gull", "x 007.Gull"), r"classes\.txt:2: expected"),
    "id twice": (
        change("train_test_split.txt", "4 0", "3 0"),
        r"train_test_split\.txt:4: id 3 is listed twice",
    ),
    "bad flag": (change("train_test_split.txt", "3 1", "3 2"), r"train_test_split\.txt:3: expected .*'3 2'"),
    "bad label": (change("image_class_labels.txt", "3 12", "3 a b"), r"image_class_labels\.txt:3: expected"),
    "no label": (
        change("image_class_labels.txt", "3 12\n", ""),
        r"images\.txt:2: image id 3 is not in image_class",
    ),
    "no split": (
        change("train_test_split.txt", "4 0\n", ""),
        r"images\.txt:1: image id 4 is not in train_test",
    ),
    "unknown class": (
        change("image_class_labels.txt", "4 12", "4 13"),
        r"labels\.txt:4: class id 13 is not in",
    ),
    "path twice": (
        change("images.txt", "012.Tern/d", "012.Tern/c"),
        r"images\.txt:\d: 012.Tern/c.jpg is listed",
    ),
    "no training": (
        change("train_test_split.txt", " 1\n", " 0\n"),
        r"train_test_split\.txt: no image is marked 1",
    ),
    "no test": (
        change("train_test_split.txt", " 0\n", " 1\n"),
        r"train_test_split\.txt: no image is marked 0",
    ),
    "picture missing": (
        lambda f: (f / "images/012.Tern/c.jpg").unlink(),
        r"012\.Tern/c\.jpg: listed but missing, 1 of 4 .*on_bad_image=skip",
    ),
    "images missing": (lambda f: (f / "images").rename(f / "moved"), r"listed but missing, 4 of 4"),
    "list missing": (lambda f: (f / "images.txt").unlink(), r"no images\.txt in it .*data get cub200"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_copy_is_named_with_file_line_and_fix(birds: Path, case: str) -> None:
    edit, message = BROKEN[case]
    edit(birds)
    with pytest.raises(UserError, match=message) as caught:
        Cub200(root=str(birds)).index()
    assert "\n" not in str(caught.value)
    assert "fglaunch data get cub200" in str(caught.value)


@pytest.mark.parametrize("root", ("", "nowhere"))
def test_a_missing_root_says_how_to_get_the_data(tmp_path: Path, root: str) -> None:
    with pytest.raises(UserError, match=r"data\.root.*`fglaunch data get cub200`"):
        Cub200(root=root and str(tmp_path / root)).index()


def test_missing_pictures_can_be_skipped(birds: Path) -> None:
    (birds / "images/012.Tern/c.jpg").unlink()
    data = Cub200(root=str(birds), on_bad_image="skip")
    kept, dropped = usable(data, data.index())
    assert dropped == [BadImage("images/012.Tern/c.jpg", "missing")]
    assert [sample.name for sample in kept.train] == ["images/007.Gull/a 1.jpg"]


def test_the_real_subset_is_whole_and_decodes() -> None:
    data = Cub200(root=str(real_data("cub50")))
    index = data.index()
    assert (len(index.classes), len(index.train), len(index.val)) == (50, 1449, 1500)
    assert {sample.label for sample in index.train} == {sample.label for sample in index.val} == set(range(50))
    assert all(index.classes[s.label] == s.name.split("/")[1] for s in index.train + index.val)
    assert usable(data, index) == (index, [])
    for sample in index.train[::300]:
        assert data.read(sample).shape[2] == 3

"""Pictures in folders, with the names that people and file systems really have."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import Corrupt, UserError
from tests.picture_files import write_picture


def fill(root: Path, *names: str, val: str = "val") -> ImageFolder:
    """Write pictures of these names into both splits."""
    for name in names:
        write_picture(root / "train" / name)
        write_picture(root / val / name)
    return ImageFolder(root=str(root))


def test_classes_are_folders_sorted_by_name_and_samples_too(tmp_path: Path) -> None:
    data = fill(tmp_path, "b/2.jpg", "b/10.jpg", "a/1.jpg")
    index = data.index()
    assert index.classes == ("a", "b")
    assert index.train == (("train/a/1.jpg", 0), ("train/b/10.jpg", 1), ("train/b/2.jpg", 1))
    assert index.val == (("val/a/1.jpg", 0), ("val/b/10.jpg", 1), ("val/b/2.jpg", 1))


def test_chinese_names_spaces_and_mixed_case_suffixes(tmp_path: Path) -> None:
    formats = {"白 鹭/图 1.JPG": "JPEG", "白 鹭/2.Jpeg": "JPEG", "翠鸟/3.png": "PNG"}
    formats |= {"翠鸟/4.WebP": "WEBP", "翠鸟/5.bmp": "BMP", "翠鸟/6.TIF": "TIFF"}
    for name, format_ in formats.items():
        for split in ("train", "val"):
            write_picture(tmp_path / "数据 集" / split / name, format_)
    data = ImageFolder(root=str(tmp_path / "数据 集"))
    index = data.index()
    assert index.classes == ("白 鹭", "翠鸟")
    assert len(index.train) == 6
    assert usable(data, index) == (index, [])
    assert all(data.read(sample).shape == (24, 32, 3) for sample in index.val)


def test_leaves_of_the_same_name_in_different_parents_are_two_classes(tmp_path: Path) -> None:
    index = fill(tmp_path, "water/鹭/1.jpg", "tree/鹭/1.jpg", "tree/2.jpg").index()
    assert index.classes == ("tree", "tree/鹭", "water/鹭")
    assert index.train == (("train/tree/2.jpg", 0), ("train/tree/鹭/1.jpg", 1), ("train/water/鹭/1.jpg", 2))


@pytest.mark.parametrize("val", ("valid", "test"))
def test_other_names_of_val_are_taken_where_there_is_no_val(tmp_path: Path, val: str) -> None:
    assert fill(tmp_path, "a/1.jpg", val=val).index().val == ((f"{val}/a/1.jpg", 0),)


def test_val_wins_over_test(tmp_path: Path) -> None:
    data = fill(tmp_path, "a/1.jpg")
    write_picture(tmp_path / "test/other/1.jpg")
    assert data.index().val == (("val/a/1.jpg", 0),)


def test_decomposed_and_composed_names_are_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "linux", tmp_path / "mac"
    for split, form in (("train", "NFD"), ("val", "NFC")):
        write_picture(one / split / "Möwe/ä.jpg")
        write_picture(other / split / unicodedata.normalize(form, "Möwe/ä.jpg"))
    data = ImageFolder(root=str(other))
    index = data.index()
    assert index.classes == (unicodedata.normalize("NFC", "Möwe"),)
    assert index_digest(index) == index_digest(ImageFolder(root=str(one)).index())
    assert usable(data, index) == (index, [])
    assert data.read(index.train[0]).shape == (24, 32, 3)


def test_the_same_name_in_two_forms_in_one_folder_is_refused(tmp_path: Path) -> None:
    data = fill(tmp_path, unicodedata.normalize("NFD", "Möwe/1.jpg"), unicodedata.normalize("NFC", "Möwe/1.jpg"))
    if len(list((tmp_path / "train").iterdir())) == 1:
        pytest.skip("this file system takes the two forms for one name")
    with pytest.raises(UserError, match="twice, in two Unicode forms"):
        data.index()


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    data = fill(tmp_path, "a/1.jpg")
    for name in (".DS_Store", "a/._1.jpg", "a/Thumbs.db", "readme.txt", ".cache/1.jpg"):
        write_picture(tmp_path / "train" / name)
    assert data.index().train == (("train/a/1.jpg", 0),)
    assert data.passed_over() == ["train/a/Thumbs.db", "train/readme.txt"]


def test_whatever_the_decoder_reads_is_taken_by_its_ending(tmp_path: Path) -> None:
    data = fill(tmp_path, "a/1.jpg")
    for ending, format_ in (("JFIF", "JPEG"), ("jpe", "JPEG"), ("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF")):
        write_picture(tmp_path / f"train/a/2.{ending}", format_)
    index = data.index()
    assert [sample.name.rpartition(".")[2] for sample in index.train] == ["jpg", "JFIF", "bmp", "gif", "jpe", "tif"]
    assert usable(data, index) == (index, [])
    assert all(data.read(sample).shape == (24, 32, 3) for sample in index.train)
    assert data.passed_over() == []


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    data = fill(tmp_path / "set", "a/1.jpg")
    elsewhere = tmp_path / "elsewhere"
    write_picture(elsewhere / "2.jpg")
    for split in ("train", "val"):
        (tmp_path / "set" / split / "linked").symlink_to(elsewhere)
        (tmp_path / "set" / split / "a" / "again").symlink_to(tmp_path / "set" / split)
    index = data.index()
    assert index.classes == ("a", "linked")
    assert index.train == (("train/a/1.jpg", 0), ("train/linked/2.jpg", 1))
    assert data.read(index.train[1]).shape == (24, 32, 3)


def test_a_broken_link_is_a_missing_picture(tmp_path: Path) -> None:
    data = fill(tmp_path, "a/1.jpg")
    (tmp_path / "train/a/2.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=r"1 of 3 pictures cannot be used: train/a/2\.jpg \(missing\)"):
        usable(data, data.index())
    with pytest.raises(Corrupt, match=r"2\.jpg: No such file"):
        data.read(data.index().train[1])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no train": (lambda r: (r / "train").rename(r / "t"), r"there is no train/ folder; .*train/<class>/"),
    "no val": (lambda r: (r / "val").rename(r / "v"), r"there is no val/ folder"),
    "empty class": (lambda r: (r / "train/鹤").mkdir(), r"train/鹤: class folder without pictures"),
    "class without pictures": (
        lambda r: (write_picture(r / "val/鹤/1.jpg"), (r / "val/鹤/1.jpg").rename(r / "val/鹤/1.txt")),
        r"val/鹤: class folder without pictures",
    ),
    "no class folder": (lambda r: write_picture(r / "train/1.jpg"), r"train/1\.jpg: lies in no class folder"),
    "nothing": (
        lambda r: ((r / "val/a/1.jpg").unlink(), (r / "val/a").rmdir()),
        r"val: holds no pictures \(\.jpg, ",
    ),
    "extra in val": (lambda r: write_picture(r / "val/鹤/1.jpg"), r"differ: train/ lacks 鹤; make"),
    "both differ": (
        lambda r: (write_picture(r / "val/鹤/1.jpg"), write_picture(r / "train/x/鹭/1.jpg")),
        r"differ: train/ lacks 鹤; val/ lacks x/鹭; make",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_layout_is_named_with_its_fix(tmp_path: Path, case: str) -> None:
    data = fill(tmp_path, "a/1.jpg")
    edit, message = BROKEN[case]
    edit(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        data.index()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", ("", "nowhere"))
def test_a_missing_root_is_named(tmp_path: Path, root: str) -> None:
    with pytest.raises(UserError, match=r"data\.root"):
        ImageFolder(root=root and str(tmp_path / root)).index()


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    data = fill(tmp_path, "a/1.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "train/a") + b"/\xb0\xd7.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system stores text only")
    with pytest.raises(UserError, match=r"xb0.*is not UTF-8; rename it"):
        data.index()


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/."), min_size=1, max_size=8)


@settings(deadline=None)
@given(names=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=6))
def test_any_names_give_a_sorted_index_whose_samples_exist(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for split in ("train", "val"):
        for class_, name in names:
            path = root / split / unicodedata.normalize("NFC", class_) / unicodedata.normalize("NFC", f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    data = ImageFolder(root=str(root))
    index = data.index()
    assert list(index.classes) == sorted({unicodedata.normalize("NFC", class_) for class_, _ in names})
    assert list(index.train) == sorted(index.train)
    assert all(data.path(sample).is_file() for sample in index.train + index.val)
    assert all(sample.name.split("/")[1] == index.classes[sample.label] for sample in index.train)

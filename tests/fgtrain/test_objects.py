"""Data sets in object storage are those of a folder, read through a bounded cache."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fgtrain import objects
from fgtrain.data import Sample
from fgtrain.data.cub200 import Cub200
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.dataindex import usable
from fgtrain.errors import Corrupt, StoreUnavailable, UserError
from fgtrain.loader import announced, training_batches
from fgtrain.models.timm import Timm
from fgtrain.plan import make_plan
from fgtrain.recipe import SGD, Batch, Loader, Recipe, replace
from fgtrain.stores import open_store
from tests.picture_files import encoded, gradient, write_picture
from tests.testbed.runs import wait_for
from tests.testbed.s3 import S3Server


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FGLAUNCH_CACHE", str(tmp_path / "cache"))
    objects.open_root.cache_clear()
    yield tmp_path / "cache" / "objects"
    objects.open_root.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "鸟"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            write_picture(root / split / "翠 鸟" / f"{number}.jpg")
            write_picture(root / split / "heron" / f"{number}.png", "PNG")
    write_picture(root / "train" / ".hidden" / "x.jpg")
    (root / "train" / "heron" / "notes.txt").write_text("no picture")
    return root


def held(place: Path) -> int:
    return len([p for p in place.glob("*") if not p.name.startswith(".")])


def test_the_index_and_the_pixels_are_those_of_the_folder(folder: Path, place: Path) -> None:
    there, here = ImageFolder(root=f"file://{folder}"), ImageFolder(root=str(folder))
    index = there.index()
    assert index == here.index()
    assert usable(there, index) == (index, [])
    for sample in index.train:
        np.testing.assert_array_equal(there.read(sample), here.read(sample))
    assert held(place) == len(index.train)


def test_cub_in_a_store_is_cub_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "cub" / "CUB_200_2011"
    write_picture(root / "images" / "001.A" / "a.jpg")
    write_picture(root / "images" / "001.A" / "b.jpg")
    for name, text in {
        "classes": "1 001.A\n",
        "images": "1 001.A/a.jpg\n2 001.A/b.jpg\n",
        "image_class_labels": "1 1\n2 1\n",
        "train_test_split": "1 1\n2 0\n",
    }.items():
        (root / f"{name}.txt").write_text(text)
    there, here = Cub200(root=f"file://{root.parent}"), Cub200(root=str(root))
    assert there.index() == here.index()
    np.testing.assert_array_equal(there.read(there.index().val[0]), here.read(here.index().val[0]))
    (root / "images" / "001.A" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"b\.jpg: listed but missing"):
        Cub200(root=f"file://{root}").index()


def test_names_in_another_unicode_form_are_found(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_picture(tmp_path / "d" / split / unicodedata.normalize("NFD", "é") / "1.jpg")
    data = ImageFolder(root=f"file://{tmp_path}/d")
    assert data.index().classes == ("é",)
    assert data.read(data.index().train[0]).shape == (24, 32, 3)


def test_bad_and_missing_objects_are_handled_as_files_are(folder: Path) -> None:
    (folder / "train" / "heron" / "1.png").write_bytes(b"")
    data = ImageFolder(root=f"file://{folder}", on_bad_image="skip")
    index, bad = usable(data, data.index())
    assert [(b.name, b.reason) for b in bad] == [("train/heron/1.png", "empty")]
    gone = index.train[0]
    (folder / gone.name).unlink()
    with pytest.raises(Corrupt, match=r"heron/0\.png: no such object"):
        data.read(gone)
    with pytest.raises(Corrupt, match="no such object"):
        data.read(Sample("train/none.jpg", 0))
    assert data.inspect([Sample("train/none.jpg", 0)])[0].reason == "missing"


def test_an_object_that_was_replaced_is_not_taken_for_the_old_one(folder: Path) -> None:
    data = ImageFolder(root=f"file://{folder}")
    sample = data.index().train[0]
    data.read(sample)
    (folder / sample.name).write_bytes(encoded(gradient(8, 9), "PNG"))
    objects.open_root.cache_clear()  # as another process
    assert data.read(sample).shape == (8, 9, 3)


def test_a_layout_that_is_wrong_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "d" / "train" / "a" / "1.jpg")
    with pytest.raises(UserError, match=r"data\.root=file://.*/d: there is no val/ folder"):
        ImageFolder(root=f"file://{tmp_path}/d").index()
    write_picture(tmp_path / "d" / "val" / "1.jpg")
    objects.open_root.cache_clear()
    with pytest.raises(UserError, match=r"val/1\.jpg: lies in no class folder"):
        ImageFolder(root=f"file://{tmp_path}/d").index()
    with pytest.raises(UserError, match="unknown scheme"):
        ImageFolder(root="ftp://x/y").index()


def pixels_of(data: ImageFolder) -> list[bytes]:
    """Return what an epoch of training sees, through a loader process."""
    recipe = Recipe(
        model=Timm(name="resnet18", classes=2),
        data=replace(data, resize=20, crop=16),
        optim=SGD(lr=0.1),
        batch=Batch(total=2, micro=2),
        epochs=1,
        loader=Loader(workers=1),
    )
    samples = data.index().train
    plan = make_plan(recipe, len(samples))
    batches = training_batches(recipe, plan, samples, start=0, rank=0, size=1, gpu=False)
    return [batch.images.numpy().tobytes() for batch in batches]


@pytest.mark.parametrize("text", ("much", "-1", "inf", "nan"))
def test_a_limit_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FGLAUNCH_CACHE_GB", text)
    with pytest.raises(UserError, match=f"FGLAUNCH_CACHE_GB={text}"):
        objects.limit_bytes()


def test_items_are_told_of_before_they_are_needed_and_in_their_order() -> None:
    told: list[int] = []
    seen = [(item, len(told)) for item in announced(range(10), told.append, 3)]
    assert told == list(range(10)) == [item for item, _ in seen]
    assert [count for _, count in seen[:6]] == [4, 5, 6, 7, 8, 9]
    assert list(announced([], told.append, 3)) == []


def test_pictures_stream_from_a_real_server(
    folder: Path, place: Path, localbucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in localbucket.env.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{localbucket.bucket}/birds"
    store = open_store(url)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    there, here = ImageFolder(root=url), ImageFolder(root=str(folder))
    index = there.index()
    assert index == here.index()
    for _ in range(2):  # the second time, loader processes are forked from one that has threads that fetch
        assert pixels_of(there) == pixels_of(here)
        for path in place.iterdir():
            path.unlink(missing_ok=True)  # one in the making has another name by now
    there.expect(index.train)
    wait_for(lambda: held(place) == len(index.train), "all objects fetched ahead")
    for sample in index.train:
        store.delete(sample.name)
        np.testing.assert_array_equal(there.read(sample), here.read(sample))
    with pytest.raises(Corrupt, match="no such object any more"):
        store.delete(index.val[0].name)
        there.read(index.val[0])


def test_a_store_that_does_not_answer_is_no_bad_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreUnavailable):
        ImageFolder(root="s3://nowhere/x").index()

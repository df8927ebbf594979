"""A cache made from objects in a store: each is fetched once if there is room, and none stays beside its pixels."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgtrain import objects
from fgtrain.cache import build as build_module
from fgtrain.cache import ready
from fgtrain.cache.build import Job, Told, build
from fgtrain.cache.ready import make_ready, peak, source
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.errors import StoreUnavailable, UserError
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Loader, Recipe
from fgtrain.source import Fresh
from fgtrain.stores.file import FileStore
from tests.picture_files import encoded

TRAIN, VAL = 12, 4


class Counting(FileStore):
    """Counts what is fetched; after so many, it does not answer any more."""

    def __init__(self, url: str, fetched: Counter[str], answers: list[int]) -> None:
        super().__init__(Path(url.removeprefix("file://")))
        self._fetched, self._answers, self._lock = fetched, answers, threading.Lock()

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with self._lock:
            if self._answers[0] == 0:
                raise StoreUnavailable("store counting://: no answer")
            self._answers[0] -= 1
            self._fetched[key] += 1
        return super().get(key, start, end)


class Bed(NamedTuple):
    """A data set in a store that counts, `answers` of it left, and the folder of this machine's cache."""

    recipe: Recipe
    fetched: Counter[str]
    answers: list[int]
    place: Path

    @property
    def data(self) -> ImageFolder:
        data = self.recipe.data
        assert isinstance(data, ImageFolder)
        return data

    def make(self) -> None:
        """Have the cache ready, as a process that has just begun."""
        objects.open_root.cache_clear()
        ready._layouts.clear()
        list(make_ready(self.recipe, self.data.index(), store=f"file://{self.place.parent}/runs"))

    def held(self) -> int:
        folder = self.place / "objects"
        return sum(f.stat().st_size for f in folder.glob("[!.]*"))

    def size(self) -> int:
        return sum(f.stat().st_size for f in (self.place.parent / "birds").rglob("*.png"))

    def shards(self) -> list[Path]:
        return list((self.place / "pixels").glob("[!.l]*"))


@pytest.fixture(params=["disk"])
def bed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setenv("FGLAUNCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for n in range(count):
            path = tmp_path / "birds" / split / "翠鸟" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)), "PNG"))
    fetched, answers = Counter[str](), [1000]
    monkeypatch.setattr(objects, "open_store", lambda url: Counting(url, fetched, answers))
    monkeypatch.setattr(ready, "shards", partial(ready.shards, most=5000))  # of several pictures each
    monkeypatch.setattr(ready, "_run", lambda job: in_this_process(job, data))
    data = ImageFolder(root=f"file://{tmp_path}/birds", resize=20, crop=16)
    recipe = Recipe(
        model=Timm(name="resnet18", classes=1),
        data=data,
        optim=SGD(lr=0.1),
        batch=Batch(total=2, micro=1),
        epochs=1,
        loader=msgspec.convert({"kind": "loader", "cache": request.param}, Loader),
    )
    yield Bed(recipe, fetched, answers, tmp_path / "cache")
    objects.open_root.cache_clear()
    ready._layouts.clear()


def in_this_process(job: Job, data: ImageFolder) -> Iterator[Told]:
    told: list[Told] = []
    build(job, data, told.append)
    yield from told


def test_each_object_is_fetched_once_and_goes_when_its_pixels_are_there(bed: Bed) -> None:
    bed.make()
    assert sorted(bed.fetched.values()) == [1] * (TRAIN + VAL)
    assert len(bed.shards()) > 4
    assert bed.held() == 0
    bed.make()
    samples = bed.data.index().train
    cached, fresh = source(bed.recipe, samples, "train"), Fresh(bed.data, samples, "train")
    pixels = [cached.read(n) for n in range(TRAIN)]
    assert sum(bed.fetched.values()) == TRAIN + VAL
    for n, found in enumerate(pixels):
        np.testing.assert_array_equal(found, fresh.read(n))


def test_the_room_that_objects_had_is_given_back(bed: Bed) -> None:
    bed.make()
    assert int.from_bytes((bed.place / "objects" / ".ledger").read_bytes(), "little") == 0


@pytest.mark.parametrize(("share", "least", "most"), [(0, 2.0, 2.0), (0.5, 1.4, 1.7), (1.2, 1.0, 1.0)])
def test_what_the_object_cache_has_no_room_for_is_fetched_twice_and_never_more(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, share: float, least: float, most: float
) -> None:
    monkeypatch.setenv("FGLAUNCH_CACHE_GB", f"{share * bed.size() / 1e9}")
    bed.make()
    assert least <= sum(bed.fetched.values()) / (TRAIN + VAL) <= most
    assert max(bed.fetched.values()) <= 2
    assert bed.held() == 0


@pytest.mark.parametrize("answers", (0, 7, TRAIN + VAL - 1))
def test_after_an_outage_nothing_is_fetched_twice(bed: Bed, answers: int) -> None:
    bed.answers[0] = answers
    with pytest.raises(StoreUnavailable):
        bed.make()
    assert not bed.shards()
    bed.answers[0] = 1000
    bed.make()
    assert len(bed.shards()) > 4
    assert sorted(bed.fetched.values()) == [1] * (TRAIN + VAL)


@pytest.mark.parametrize("whole", (0, 3))
def test_a_builder_that_dies_leaves_the_objects_of_what_is_not_done(
    bed: Bed, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = build_module._settle

    def dies(part: Path, path: Path) -> None:
        if len(bed.shards()) == whole:
            raise StoreUnavailable("as good as a kill")
        settle(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_settle", dies)
        with pytest.raises(StoreUnavailable):
            bed.make()
    assert len(bed.shards()) == whole
    assert 0 < bed.held() <= bed.size()
    assert (bed.held() < bed.size()) == (whole > 0)  # those of shards that are done are gone
    bed.make()
    assert sorted(bed.fetched.values()) == [1] * (TRAIN + VAL)
    assert bed.held() == 0


@pytest.mark.parametrize("bed", ["store"], indirect=True)
def test_who_takes_pixels_from_the_store_reads_objects_once_to_know_them(bed: Bed) -> None:
    bed.make()
    shutil.rmtree(bed.place)
    bed.make()
    assert sorted(bed.fetched.values()) == [2] * (TRAIN + VAL)  # once a machine
    assert bed.held() == 0


def test_objects_of_equal_contents_all_go(bed: Bed) -> None:
    folder = bed.place.parent / "birds" / "train" / "翠鸟"
    for n in range(1, TRAIN):
        (folder / f"{n}.png").write_bytes((folder / "0.png").read_bytes())
    bed.make()
    assert sorted(bed.fetched.values()) == [1] * (TRAIN + VAL)
    assert bed.held() == 0


@pytest.mark.parametrize("free", ("a little", "none"))
def test_objects_are_counted_as_room_and_go_first_where_there_is_no_other(
    bed: Bed, free: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "_SPARE_BYTES", 0)
    size = bed.size()
    pixels = (TRAIN + VAL) * 20 * 20 * 3
    assert size > pixels + 5000
    room = 1000 if free == "a little" else -size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, room))
    if free == "none":
        with pytest.raises(UserError, match="make room there"):
            bed.make()
        assert bed.held() == size, "what was fetched is there for the next time"
        return
    bed.make()
    assert set(bed.fetched.values()) == {2}
    assert bed.held() == 0


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=9))
def test_the_most_that_is_taken_lies_between_the_first_shard_and_all(shards: list[tuple[int, int]]) -> None:
    found = peak(shards)
    assert sum(bytes_ for bytes_, _ in shards[:1]) <= found <= sum(bytes_ for bytes_, _ in shards)
    assert found >= sum(bytes_ for bytes_, _ in shards) - sum(objects for _, objects in shards[:-1])
    assert peak((bytes_, 0) for bytes_, _ in shards) == sum(bytes_ for bytes_, _ in shards)

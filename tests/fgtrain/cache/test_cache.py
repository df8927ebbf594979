"""The cache gives the bits that decoding gives, whatever happened to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from fgtrain.cache import ready
from fgtrain.cache.build import Job, Task, Told, build, failure, read_lines
from fgtrain.cache.ready import Layout, complain, make_ready, missing, plan, require_room, source
from fgtrain.cache.together import ready_together
from fgtrain.data import Index
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.errors import Corrupt, StoreUnavailable, UserError
from fgtrain.journal import Journal
from fgtrain.models.timm import Timm
from fgtrain.parts import to_json
from fgtrain.place import Place
from fgtrain.pulse import Phase, Pulse
from fgtrain.pulse import decode as decode_pulse
from fgtrain.recipe import SGD, Batch, Loader, Recipe, replace
from fgtrain.source import Fresh
from tests.picture_files import encoded, write_picture


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageFolder]:
    monkeypatch.setenv("FGLAUNCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for n in range(count):
            path = tmp_path / "data" / split / "鸟 类" / f"{n}.jpg"
            write_picture(path)
            picture = Image.fromarray(rng.integers(0, 256, (20 + n, 30, 3), dtype=np.uint8))
            path.write_bytes(encoded(picture, "JPEG" if n else "PNG"))
    yield ImageFolder(root=str(tmp_path / "data"), resize=16, crop=12)
    ready._layouts.clear()


def recipe_of(data: ImageFolder, cache: str = "disk") -> Recipe:
    recipe = Recipe(
        model=Timm(name="resnet18", classes=1), data=data, optim=SGD(lr=0.1), batch=Batch(total=2, micro=1), epochs=1
    )
    return replace(recipe, loader=msgspec.convert({"kind": "loader", "cache": cache}, Loader))


def layout_of(data: ImageFolder, folder: Path) -> Layout:
    (folder / "pixels").mkdir(parents=True, exist_ok=True)
    planning = plan(data, data.index().train, "train", folder)
    while True:
        try:
            next(planning)
        except StopIteration as end:
            layout: Layout = end.value
            return layout


def job_of(data: ImageFolder, layout: Layout, folder: Path, store: str | None = None) -> Job:
    raw = msgspec.Raw(to_json(data))
    return Job(raw, [Task(layout.prepare, list(layout.shards), layout.names)], str(folder / "pixels"), 2, store)


def differences(data: ImageFolder) -> int:
    """Count the pictures that the cache gives otherwise than decoding does."""
    samples = data.index().train
    cached, fresh = source(recipe_of(data), samples, "train"), Fresh(data, samples, "train")
    cached.expect(range(len(samples)))
    return sum(not np.array_equal(cached.read(n), fresh.read(n)) for n in range(len(samples)))


def whole(data: ImageFolder, folder: Path) -> bool:
    return not missing(layout_of(data, folder), folder / "pixels")


@pytest.mark.parametrize("scale", (None, (0.5, 1.0)))
def test_what_is_built_is_what_decoding_gives_for_shares_of_the_picture_too(
    data: ImageFolder, tmp_path: Path, scale: tuple[float, float] | None
) -> None:
    data, place = replace(data, scale=scale), tmp_path / "cache"
    layout = layout_of(data, place)
    told: list[Told] = []
    build(job_of(data, layout, place), data, told.append)
    assert sum(t.done for t in told) == 7
    assert differences(data) == 0
    assert whole(data, place)
    assert not list((place / "pixels").glob(".*"))
    cached = source(recipe_of(data), data.index().train, "train")
    assert not cached.read(0).flags.writeable  # it is mapped, not decoded


@pytest.mark.parametrize("orientation", (1, 3, 6, 8))
def test_pictures_of_any_format_that_lie_on_their_side_are_cached(
    data: ImageFolder, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (20, 37, 3), dtype=np.uint8))
    for sample, format_ in zip(data.index().train, ("TIFF", "JPEG", "PNG", "WEBP"), strict=False):
        data.path(sample).write_bytes(encoded(picture, format_, exif=exif))
    told: list[Told] = []
    build(job_of(data, layout_of(data, tmp_path / "cache"), tmp_path / "cache"), data, told.append)
    assert not [t.bad for t in told if t.bad]
    assert differences(data) == 0


def test_without_a_cache_or_with_a_damaged_one_pictures_are_decoded(data: ImageFolder, tmp_path: Path) -> None:
    assert differences(data) == 0
    place = tmp_path / "cache"
    layout = layout_of(data, place)
    build(job_of(data, layout, place), data, lambda told: None)
    path = place / "pixels" / layout.shards[0].name
    path.write_bytes(path.read_bytes()[:-1])
    assert len(missing(layout, place / "pixels")) == 1
    assert differences(data) == 0


def test_a_changed_file_is_another_picture(data: ImageFolder, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    build(job_of(data, layout_of(data, place), place), data, lambda told: None)
    assert whole(data, place)
    file = data.path(data.index().train[2])
    file.write_bytes(encoded(Image.new("RGB", (40, 40), "red"), "JPEG"))
    ready._layouts.clear()
    assert not whole(data, place)
    assert differences(data) == 0


def test_a_file_changed_after_planning_is_not_taken_for_what_it_was(data: ImageFolder, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    layout, told = layout_of(data, place), []
    data.path(data.index().train[2]).write_bytes(encoded(Image.new("RGB", (30, 22), "red"), "JPEG"))
    build(job_of(data, layout, place), data, told.append)
    assert "has changed" in str([t.bad for t in told if t.bad])
    assert differences(data) == 0


def test_a_picture_that_cannot_be_decoded_ends_it_or_is_left_to_the_loader(data: ImageFolder, tmp_path: Path) -> None:
    samples, place = data.index().train, tmp_path / "cache"
    file = data.path(samples[0])  # a PNG
    content = bytearray(file.read_bytes())
    at = content.index(b"IDAT") + 4
    content[at : at + 20] = b"\xff" * 20
    file.write_bytes(content)
    told: list[Told] = []
    build(job_of(data, layout_of(data, place), place), data, told.append)
    (bad,) = [t for t in told if t.bad]
    with pytest.raises(UserError, match=r"0\.jpg.*on_bad_image=skip"):
        complain(data, bad)
    complain(replace(data, on_bad_image="skip"), bad)
    cached = source(recipe_of(data), samples, "train")
    with pytest.raises(Corrupt, match=r"0\.jpg: cannot be decoded"):
        cached.read(0)
    assert cached.read(4).shape == (16, 20, 3)


def test_an_outage_of_the_store_is_one_where_the_builders_word_arrives(
    data: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    there = replace(data, root="s3://nowhere/x")
    job = job_of(there, layout_of(data, tmp_path / "cache"), tmp_path / "cache")
    with pytest.raises(StoreUnavailable, match=r"s3://nowhere/x.*127\.0\.0\.1:9"):
        for told in ready._run(job):
            complain(there, told)
    assert not list((tmp_path / "cache" / "pixels").glob("[!.]*"))


@pytest.mark.parametrize(
    ("error", "class_", "message"),
    [
        (UserError("store s3://b: access denied; grant it"), UserError, "^store s3://b: access denied; grant it$"),
        (StoreUnavailable("store s3://b: 503"), StoreUnavailable, "^store s3://b: 503$"),
        (
            OSError(28, "No space left on device"),
            UserError,
            "^loader.cache: /cache: No space left on device; make room",
        ),
        (OSError(30, "Read-only", "/a"), UserError, "^loader.cache: /a: Read-only; make room"),
        (MemoryError("42 GB"), RuntimeError, "MemoryError: 42 GB"),
    ],
)
def test_what_ends_the_builder_is_raised_as_what_it_is(error: Exception, class_: type[Exception], message: str) -> None:
    line = msgspec.json.encode(failure(error, "/cache"))
    (told,) = read_lines(iter([b"no line of progress", line]))
    with pytest.raises(class_, match=message) as raised:
        complain(ImageFolder(), told)
    assert type(raised.value) is class_


def test_a_builder_that_ends_without_a_word_is_no_success(
    data: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1, without a word"):
        list(ready._run(job_of(data, layout_of(data, tmp_path), tmp_path)))


def test_a_killed_builder_leaves_nothing_that_is_read_and_the_next_one_goes_on(
    data: ImageFolder, tmp_path: Path
) -> None:
    place = tmp_path / "cache"
    layout = layout_of(data, place)
    first, *_ = many = ready.shards(layout.shards[0].items, layout.prepare, ready.makers(), most=1000)
    job = job_of(data, layout._replace(shards=tuple(many)), place)
    assert len(many) > 2
    builder = subprocess.Popen(
        [sys.executable, "-m", "fgtrain.cache.build"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert builder.stdin and builder.stdout
    builder.stdin.write(msgspec.json.encode(job))
    builder.stdin.close()
    next(read_lines(iter(builder.stdout.readline, b"")))
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait(240)
    (place / "pixels" / f".{first.name}.part").write_bytes(b"half")
    for path in (place / "pixels").iterdir():
        assert path.name.startswith(".") or path.stat().st_size in {s.bytes_ for s in many}
    build(job, data, lambda told: None)
    assert {p.name for p in (place / "pixels").iterdir()} == {s.name for s in many}


def test_shards_come_from_the_store_if_they_are_there_whole(data: ImageFolder, tmp_path: Path) -> None:
    layout, store = layout_of(data, tmp_path / "a"), f"file://{tmp_path}/store"
    build(job_of(data, layout, tmp_path / "a", store), data, lambda told: None)
    name = layout.shards[0].name
    shared = tmp_path / "store" / "pictures" / name
    other = tmp_path / "b" / "pixels"
    other.mkdir(parents=True)
    gone = replace(data, root=str(tmp_path / "data"))
    build(job_of(gone, layout._replace(names={}), tmp_path / "b", store), gone, lambda told: None)  # no file is asked
    assert (other / name).read_bytes() == shared.read_bytes()
    (other / name).unlink()
    shared.write_bytes(b"\0" * shared.stat().st_size)
    build(job_of(data, layout, tmp_path / "b", store), data, lambda told: None)
    assert (other / name).read_bytes() == (tmp_path / "a" / "pixels" / name).read_bytes()


def test_who_comes_second_waits_for_the_one_that_builds(data: ImageFolder, tmp_path: Path) -> None:
    place, index = tmp_path / "cache", Index((), data.index().train, data.index().train)
    layout = layout_of(data, place)
    (place / "sources").rename(tmp_path / "forgotten")
    ready._layouts.clear()
    first, second = (make_ready(recipe_of(data), index) for _ in range(2))
    assert next(first).what == "reading picture files"
    assert next(second).what == "another process prepares pictures"
    build(job_of(data, layout, place), data, lambda told: None)
    first.close()  # as if it had died
    assert not [p for p in second if p.what.startswith("preparing")]  # there is nothing left to do


def test_ranks_wait_for_it_are_seen_to_move_and_leave_when_asked(data: ImageFolder, tmp_path: Path) -> None:
    place, index = tmp_path / "cache", Index((), data.index().train, data.index().train)
    layout, node = layout_of(data, place), Place(0, 1, 0, torch.device("cpu"))
    (place / "sources").rename(tmp_path / "forgotten")
    ready._layouts.clear()
    pulse, journal, asked = Pulse(tmp_path), Journal(tmp_path, node), [True]

    def together() -> bool:
        return ready_together(recipe_of(data), index, "memory://x", node, pulse, lambda: asked[0], journal)

    assert not together()
    build(job_of(data, layout, place), data, lambda told: None)
    (place / "sources").rename(tmp_path / "forgotten too")
    ready._layouts.clear()
    asked[0] = False
    assert together()
    journal.close()
    (beat,) = decode_pulse((tmp_path / "pulse").read_bytes())
    assert (beat.phase, beat.step > 0) == (Phase.PREPARE, True)
    assert "reading picture files: 7 of 7" in (tmp_path / "events.jsonl").read_text()


def test_no_room_is_one_line_that_says_how_much(tmp_path: Path) -> None:
    require_room(0, 0, tmp_path)
    with pytest.raises(UserError, match=r"take 12\.4 GB more and .* has 3\.0 GB free; .*FGLAUNCH_CACHE"):
        require_room(12_400_000_000, 3_000_000_000, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(data: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="FGLAUNCH_CACHE"):
        list(make_ready(recipe_of(data), data.index(), place=tmp_path / "file"))


def test_data_without_files_has_no_cache(tmp_path: Path) -> None:
    from fgtrain.data.digits import Digits

    recipe = replace(recipe_of(ImageFolder()), data=Digits())
    with pytest.raises(UserError, match="loader.cache=off"):
        list(make_ready(recipe, Index((), (), ()), place=tmp_path))

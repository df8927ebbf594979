"""Have the cache of a recipe ready: plan it, see that there is room, build what is missing, once a machine."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec

from fgtrain import errors
from fgtrain.cache import cache_place
from fgtrain.cache.build import EXIT_TOLD, Job, Task, Told, read_lines, samples_of
from fgtrain.cache.catalogue import look
from fgtrain.cache.reader import Cached, spots
from fgtrain.cache.shards import Item, Shard, makers, shards
from fgtrain.data import Images, Index, Sample, Split
from fgtrain.errors import FglaunchError, UserError
from fgtrain.parts import to_json
from fgtrain.pictures import PictureFiles
from fgtrain.preparation import Preparation, preparation
from fgtrain.recipe import Recipe
from fgtrain.source import Fresh, Source

T = TypeVar("T")

_SPLITS: tuple[Split, ...] = ("train", "val")
_LOOK_S = 0.5  # how often who waits looks again
_SPARE_BYTES = 64 << 20  # of the disk's room that is left alone


class Progress(NamedTuple):
    """What goes on: pictures done of those that are to be prepared; none to be done while another process builds."""

    what: str
    done: int
    total: int


class Layout(NamedTuple):
    """A split's cache: each sample's item (None: no usable picture), and the shards they make."""

    prepare: Preparation
    items: tuple[Item | None, ...]
    shards: tuple[Shard, ...]
    names: dict[str, str]


_layouts: dict[tuple[Images, Split, Path], tuple[tuple[Sample, ...], Layout]] = {}


def source(recipe: Recipe, samples: tuple[Sample, ...], split: Split) -> Source:
    """Return where a split's prepared pictures come from: the cache, if the recipe wants it, or their files."""
    data = recipe.data
    assert isinstance(data, Images)
    fresh = Fresh(data, samples, split)
    if recipe.loader.cache == "off" or not isinstance(data, PictureFiles):
        return fresh
    layout = _result(plan(data, samples, split, cache_place()))
    return Cached(cache_place() / "pixels", layout.shards, spots(layout.items, layout.shards), fresh)


def plan(
    data: PictureFiles, samples: tuple[Sample, ...], split: Split, place: Path
) -> Generator[Progress, None, Layout]:
    """Work out what the cache of a split is; files that are new or changed are read. The same question is free."""
    key = (data, split, place)
    if key not in _layouts or _layouts[key][0] != samples:
        looking, prepare = look(data, samples, place), preparation(data, split)
        known = yield from _spoken("reading picture files", looking)
        items = tuple(Item(k.digest, *prepare.size(k.width, k.height)) if k.digest else None for k in known)
        names = {k.digest: s.name for k, s in zip(known, samples, strict=True)}
        layout = Layout(prepare, items, tuple(shards(filter(None, items), prepare, makers())), names)
        _layouts[key] = samples, layout
    return _layouts[key][1]


def _spoken(what: str, counts: Generator[tuple[int, int], None, T]) -> Generator[Progress, None, T]:
    """Turn counts into progress."""
    while True:
        try:
            yield Progress(what, *next(counts))
        except StopIteration as end:
            result: T = end.value
            return result


def _result(work: Generator[Progress, None, T]) -> T:
    """Do some work without telling anybody."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def make_ready(
    recipe: Recipe, index: Index, *, store: str | None = None, place: Path | None = None, turn: int = 0
) -> Generator[Progress, None, None]:
    """Have the cache of both splits ready, telling what goes on about twice a second; closing the generator stops it.

    Args:
        recipe: whose data; nothing is done unless its `loader.cache` asks for it.
        index: the samples.
        store: where shards are shared with other machines, if `loader.cache` is "store".
        place: the cache's folder.
        turn: number of this machine: each begins with other shards, so that they share the work.

    Raises:
        UserError: there is no room, it cannot be written, or (`data.on_bad_image=fail`) a picture cannot be decoded.
        StoreUnavailable: the objects that the pictures are cannot be had just now; the next call goes on from here.
    """
    data, place = recipe.data, place or cache_place()
    if recipe.loader.cache == "off":
        return
    if not isinstance(data, PictureFiles):
        raise UserError(
            f"loader.cache={recipe.loader.cache}: {type(data).__name__} reads no picture files; --set loader.cache=off"
        )
    folder = place / "pixels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "lock") as take:
            while not take():
                yield Progress("another process prepares pictures", 0, 0)
                time.sleep(_LOOK_S)
            shared = store if recipe.loader.cache == "store" else None
            yield from _build_missing(data, index, place, shared, turn)
    except OSError as error:
        raise UserError(
            f"loader.cache={recipe.loader.cache}: {error.filename or folder}: {error.strerror};"
            " set FGLAUNCH_CACHE to a folder that can be written, or --set loader.cache=off"
        ) from error


def missing(layout: Layout, folder: Path) -> list[Shard]:
    """Return the shards that are not there whole."""
    return [s for s in layout.shards if _bytes_of(folder / s.name) != s.bytes_]


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _build_missing(
    data: PictureFiles, index: Index, place: Path, store: str | None, turn: int
) -> Generator[Progress, None, None]:
    folder = place / "pixels"
    tasks: list[Task] = []
    for split in _SPLITS:
        layout = yield from plan(data, index.split(split), split, place)
        if some := missing(layout, folder):
            tasks.append(Task(layout.prepare, _turned(some, turn), layout.names))
    lacking = {s.name: s.bytes_ for t in tasks for s in t.shards}
    have_room(data, tasks, shutil.disk_usage(folder).free, folder)
    what = f"preparing {sum(lacking.values()) / 1e9:.1f} GB of pictures"
    total, done = sum(len(s.items) for t in tasks for s in t.shards), 0
    job = Job(msgspec.Raw(to_json(data)), tasks, str(folder), _cores(), store)
    for told in _run(job) if tasks else ():
        done += told.done
        complain(data, told)
        yield Progress(what, done, total)
    data.drop(sample for split in _SPLITS for sample in index.split(split))  # of pictures that a builder had no use for


def _turned(some: list[Shard], turn: int) -> list[Shard]:
    """Begin elsewhere: neighbours an eighth apart."""
    first = turn * len(some) // 8 % len(some)
    return [*some[first:], *some[:first]]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def have_room(data: PictureFiles, tasks: Sequence[Task], free: int, folder: Path) -> None:
    """See that the cache fits, beside the objects that it is made from; if it fits only without, they go.

    Raises:
        UserError: it does not fit.
    """
    todo = {s.name: (s.bytes_, samples_of(s, t.names)) for t in tasks for s in t.shards}
    held = [(bytes_, data.held_bytes(samples)) for bytes_, samples in todo.values()]
    require_room(sum(bytes_ for bytes_, _ in held), free + sum(objects for _, objects in held), folder)
    if peak(held) + _SPARE_BYTES > free:
        data.drop(sample for _, samples in todo.values() for sample in samples)


def peak(shards: Iterable[tuple[int, int]]) -> int:
    """Return how much more of the disk is taken at most while shards are built one after the other.

    Args:
        shards: bytes of each, and of the objects on the disk that go when it is done.
    """
    most = now = 0
    for bytes_, objects in shards:
        most = max(most, now := now + bytes_)
        now -= objects
    return most


def require_room(needed: int, free: int, folder: Path) -> None:
    """See that the cache fits.

    Raises:
        UserError: it does not.
    """
    if needed and needed + _SPARE_BYTES > free:
        raise UserError(
            f"loader.cache: the prepared pictures take {needed / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB"
            " free; make room there, set FGLAUNCH_CACHE to another folder, lower data.resize (or data.shrink), or"
            " --set loader.cache=off"
        )


def complain(data: PictureFiles, told: Told) -> None:
    """See that nothing is wrong.

    Raises:
        UserError: the cache's folder fails, or a picture is bad and the policy is to fail.
        FglaunchError: what the builder met, of the same class.
        RuntimeError: the builder failed for another reason.
    """
    if told.class_ == "OSError":
        raise UserError(
            f"loader.cache: {told.failed}; make room or set FGLAUNCH_CACHE to another folder, or --set loader.cache=off"
        )
    if told.class_:
        again: type[FglaunchError] = getattr(errors, told.class_)
        raise again(told.failed)
    if told.failed:
        raise RuntimeError(f"preparing pictures failed: {told.failed}; the traceback is above")
    if told.bad and data.on_bad_image == "fail":
        raise UserError(f"{told.bad[0][1]}; remove it, or go on without it: --set data.on_bad_image=skip")


def _run(job: Job) -> Iterator[Told]:
    """Run a builder, and tell at least every `_LOOK_S`; it ends with this generator, or this process."""
    command = [sys.executable, "-m", "fgtrain.cache.build"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        with suppress(BrokenPipeError):  # it has ended already; its exit code tells
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
        yield from read_lines(_lines(process.stdout))
        if process.wait() not in (0, EXIT_TOLD):
            raise RuntimeError(f"the process that prepares pictures ended with {process.returncode}, without a word")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield lines as they come, and an empty object whenever there is none for `_LOOK_S`."""
    rest = b""
    while True:
        if not select.select([stream], [], [], _LOOK_S)[0]:
            yield b"{}"
            continue
        new = os.read(stream.fileno(), 1 << 16)
        if not new:
            return
        *lines, rest = (rest + new).split(b"\n")
        yield from lines


@contextmanager
def _lock(path: Path) -> Iterator[partial[bool]]:
    """Yield what tries to take a lock, which ends with this context or this process."""
    with path.open("ab") as file:
        yield partial(_take, file)


def _take(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

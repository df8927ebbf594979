"""Make shards: `python -m fgtrain.cache.build`, a job as JSON on standard input, progress as lines on standard output.

A process of its own, so that it decodes on every core without threads in the process that trains. A shard is written
under a name that nobody reads, synced, and renamed when it is whole: whatever kills this, finished shards stay. Objects
are read for the last time here: what is not on the local disk is not put there, and what is goes with its shard done.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fgtrain import errors
from fgtrain.cache.shards import SEAL_BYTES, Item, Shard
from fgtrain.data import Data, Sample
from fgtrain.errors import Corrupt, FglaunchError, KeyExists, KeyMissing, StoreUnavailable
from fgtrain.pictures import PictureFiles
from fgtrain.preparation import Preparation
from fgtrain.stores import Store, open_store

STORE_KEY = "pictures"
EXIT_TOLD = 3  # it failed, and has said why
_PERIOD_S = 0.2


class Task(msgspec.Struct):
    """Shards of pictures prepared in one way, from which files (names by digest)."""

    prepare: Preparation
    shards: list[Shard]
    names: dict[str, str]


class Job(msgspec.Struct):
    """What to build, where, with how many threads.

    With `store`, shards are taken from there if they are there, and put there if not.
    """

    data: msgspec.Raw
    tasks: list[Task]
    folder: str
    threads: int
    store: str | None = None


class Told(msgspec.Struct, omit_defaults=True):
    """A line of progress: pictures done since the last, and those that could not be decoded, with the reasons.

    `failed`: why this is the last line; `class_`: what kind of error that was, one of `fgtrain.errors`, or "OSError" of
    the cache's folder; "" of any other exception, whose traceback is on standard error.
    """

    done: int = 0
    bad: list[tuple[str, str]] = []
    failed: str = ""
    class_: str = ""


def build(job: Job, data: PictureFiles, told: Callable[[Told], None]) -> None:
    """Make every shard of a job, in its order.

    Raises:
        OSError: no room, or the folder cannot be written to.
        StoreUnavailable: the objects that the pictures are cannot be had just now.
        UserError: they cannot be had until the user mends something.
    """
    folder = Path(job.folder)
    for stale in folder.glob(".*.part"):  # of builders that were killed: there is no other one now
        stale.unlink(missing_ok=True)
    store = open_store(job.store) if job.store else None
    with ThreadPoolExecutor(job.threads) as pool:
        for task, shard in [(t, s) for t in job.tasks for s in t.shards]:
            if store and _fetch(store, shard, folder):
                told(Told(len(shard.items)))
            else:
                _build_shard(shard, task, folder, data, pool, told)
                if store:
                    _offer(store, shard, folder)
            data.drop(samples_of(shard, task.names))


def samples_of(shard: Shard, names: dict[str, str]) -> list[Sample]:
    """Return the samples that a shard's pictures are made from; `names` are by digest."""
    return [Sample(names[item.digest], 0) for item in shard.items if item.digest in names]


def _build_shard(
    shard: Shard,
    task: Task,
    folder: Path,
    data: PictureFiles,
    pool: ThreadPoolExecutor,
    told: Callable[[Told], None],
) -> None:
    path = folder / shard.name
    part = path.with_name(f".{shard.name}.part")
    with part.open("wb+") as file:
        _reserve(file.fileno(), shard.bytes_)
        with mmap.mmap(file.fileno(), shard.bytes_) as pixels:

            def fill(number: int) -> Told:
                item, name = shard.items[number], task.names[shard.items[number].digest]
                try:
                    found = _pixels(data, Sample(name, 0), item, task.prepare)
                except Corrupt as error:
                    return Told(1, [(name, str(error))])
                pixels[shard.offsets[number] : shard.offsets[number] + item.bytes_] = found
                pixels[shard.flags_at + number] = 1
                return Told(1)

            for one in pool.map(fill, range(len(shard.items))):
                told(one)
            with memoryview(pixels) as view:
                seal = hashlib.sha256(view[:-SEAL_BYTES]).digest()
            pixels[-SEAL_BYTES:] = seal
            pixels.flush()
        os.fsync(file.fileno())
    _settle(part, path)


def _reserve(fd: int, bytes_: int) -> None:
    """Make a file so long; that there is no room is found now, not as a bus error later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, bytes_)
    else:
        os.ftruncate(fd, bytes_)


def _pixels(data: PictureFiles, sample: Sample, item: Item, prepare: Preparation) -> bytes:
    """Return one prepared picture's bytes.

    Raises:
        Corrupt: it cannot be decoded, or is not what it was when it was catalogued.
    """
    from fgtrain.decoding import decode

    content, where = data.load(sample, hold=False), str(data.path(sample))
    if hashlib.sha256(content).hexdigest() != item.digest:
        raise Corrupt(f"{where}: has changed since the cache was planned")
    found = decode(content, where, prepare)
    if found.shape != (item.height, item.width, 3):
        raise Corrupt(f"{where}: its pixels are not of the size that its header names")
    return found.tobytes()


def _settle(part: Path, path: Path) -> None:
    """Give a whole shard its name, for good."""
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _fetch(store: Store, shard: Shard, folder: Path) -> bool:
    """Take a shard from the store; False if it is not there, or damaged."""
    try:
        content = store.get(f"{STORE_KEY}/{shard.name}")
    except (KeyMissing, StoreUnavailable):
        return False
    sealed = hashlib.sha256(memoryview(content)[:-SEAL_BYTES]).digest()
    if len(content) != shard.bytes_ or content[-SEAL_BYTES:] != sealed:
        return False
    part = folder / f".{shard.name}.part"
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _settle(part, folder / shard.name)
    return True


def _offer(store: Store, shard: Shard, folder: Path) -> None:
    """Put a shard into the store, for other nodes; if that fails, they build it themselves."""
    with suppress(KeyExists, StoreUnavailable):
        store.create(f"{STORE_KEY}/{shard.name}", (folder / shard.name).read_bytes())


def _teller() -> Callable[[Told], None]:
    """Return what prints progress, a line every `_PERIOD_S` at most, and at once what is bad."""
    last, sum_ = [0.0], Told()

    def tell(one: Told) -> None:
        sum_.done += one.done
        if one.bad or one.failed or time.monotonic() - last[0] >= _PERIOD_S or not one.done:
            print(msgspec.json.encode(msgspec.structs.replace(one, done=sum_.done)).decode(), flush=True)
            last[0], sum_.done = time.monotonic(), 0

    return tell


def main() -> int:
    """Do the job on standard input."""
    import torch

    from fgtrain.parts import from_json

    torch.set_num_threads(1)  # a picture a thread
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    data: Any = from_json(bytes(job.data), Data)
    tell = _teller()
    try:
        build(job, data, tell)
    except Exception as error:
        tell(failure(error, job.folder))
        return EXIT_TOLD
    tell(Told())
    return 0


def failure(error: Exception, folder: str) -> Told:
    """Put into a line what ended the builder of a folder; `fgtrain.cache.ready.complain` makes an error of it again."""
    if isinstance(error, OSError):
        return Told(failed=f"{error.filename or folder}: {error.strerror}", class_="OSError")
    if isinstance(error, FglaunchError):
        known = next(c.__name__ for c in type(error).__mro__ if vars(errors).get(c.__name__) is c)
        return Told(failed=f"{error}", class_=known)
    traceback.print_exception(error)
    return Told(failed=f"{type(error).__name__}: {error}")


def read_lines(lines: Iterator[bytes]) -> Iterator[Told]:
    """Decode what `main` printed."""
    return (msgspec.json.decode(line, type=Told) for line in lines if line.startswith(b"{"))


if __name__ == "__main__":
    from fgtrain.lifeline import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the parent, too, which then ends this
    sys.exit(main())

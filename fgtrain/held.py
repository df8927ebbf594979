"""A folder of files that others have too: at most so many bytes, and what was read longest ago goes first.

Processes share it. A ledger, kept under a lock, holds the total, so that nobody has to list the folder for each file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_TOTAL = struct.Struct("<Q")
_SLACK = 10  # a sweep makes room for one in so many bytes beyond what is needed, so that sweeps are rare
_STALE_S = 3600.0  # a file that has been in the making for longer has lost its maker


class File(NamedTuple):
    """A held file, and when it was last read (nanoseconds)."""

    name: str
    bytes_: int
    read_ns: int


def evictions(files: Iterable[File], room: int) -> list[File]:
    """Return what must go, oldest first, for the rest to take `room` bytes or less."""
    ordered = sorted(files, key=lambda f: (f.read_ns, f.name))
    over, gone = sum(f.bytes_ for f in ordered) - room, []
    for file in ordered:
        if over <= 0:
            break
        gone.append(file)
        over -= file.bytes_
    return gone


class Held:
    """The folder. What cannot be held (too large, no room on the disk) is no error: it is fetched again when needed."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    @property
    def holds(self) -> bool:
        """Whether there is any room at all."""
        return self._limit > 0

    def has(self, name: str) -> bool:
        """Tell whether a file is here just now."""
        return (self._folder / name).exists()

    def bytes_of(self, name: str) -> int:
        """Return how much room a file takes; 0 if it is not here."""
        try:
            return (self._folder / name).stat().st_size
        except OSError:
            return 0

    def get(self, name: str) -> bytes | None:
        """Return a file's bytes, and note that it was read; None if it is not here."""
        path = self._folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Hold a file, in the place of others if need be."""
        if len(data) > self._limit:
            return
        part = self._folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._reserve(part, len(data)):
                return
            with part.open("r+b") as file:
                file.write(data)
            part.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def drop(self, names: Iterable[str]) -> None:
        """Give up files that nobody needs any more; those that are not here are no error."""
        if not self._folder.is_dir():
            return
        with contextlib.suppress(OSError), self._ledger() as fd:
            gone = 0
            for name in names:
                bytes_ = self.bytes_of(name)
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()
                    gone += bytes_
            content = os.pread(fd, _TOTAL.size, 0)
            if len(content) == _TOTAL.size:
                os.pwrite(fd, _TOTAL.pack(max(0, _TOTAL.unpack(content)[0] - gone)), 0)

    def _reserve(self, part: Path, bytes_: int) -> bool:
        """Make room, and a file that takes it up for others to count; False: files in the making take up too much."""
        with self._ledger() as fd:
            content = os.pread(fd, _TOTAL.size, 0)
            total = _TOTAL.unpack(content)[0] if len(content) == _TOTAL.size else self._limit + 1
            if total + bytes_ > self._limit:
                total = self._sweep(max(0, self._limit - self._limit // _SLACK - bytes_))
            if fits := total + bytes_ <= self._limit:
                with part.open("wb") as file:
                    file.truncate(bytes_)
                total += bytes_
            os.pwrite(fd, _TOTAL.pack(total), 0)
        return fits

    def _sweep(self, room: int) -> int:
        """Delete until `room` bytes or less are left, with those of files in the making; returns what is left."""
        files, making = self._files()
        for file in (gone := evictions(files, max(0, room - making))):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / file.name).unlink()
        return making + sum(f.bytes_ for f in files) - sum(f.bytes_ for f in gone)

    def _files(self) -> tuple[list[File], int]:
        """Return the files, and how many bytes are in the making."""
        files, making = list[File](), 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    if not entry.name.startswith("."):
                        files.append(File(entry.name, found.st_size, found.st_mtime_ns))
                    elif entry.name != ".ledger" and time.time() - found.st_mtime > _STALE_S:
                        Path(entry.path).unlink()
                    elif entry.name != ".ledger":
                        making += found.st_size
        return files, making

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        fd = os.open(self._folder / ".ledger", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile has it open, too
            os.close(fd)

"""Staged snapshots: one rank's share of a state, copied into host memory, with a header that says what it is.

A node keeps them in a folder of memory-backed files that outlives its workers. Light: the process that uploads them and
the tools that look at them need no torch.

    <folder>/<slot>.bytes     the share, laid end to end
    <folder>/<slot>.json      its header; written when the bytes are complete, removed before they are overwritten
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fgtrain.errors import Corrupt
from fgtrain.manifest import TensorSpan
from fgtrain.sealed import seal, unseal

Lines = dict[str, list[tuple[int, str]]]
"""log -> (step, JSON line)."""


class Stretch(msgspec.Struct, frozen=True):
    """Bytes [start, stop) of a group, which lie at `offset` of a file in the folder."""

    group: str
    start: int
    stop: int
    file: str
    offset: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a staged share is. `spans`, `values` and `group_bytes` describe the whole state, the rest this share.

    `base` names the newest manifest known to be committed when this was staged; `lines` are the log lines since then.
    """

    run: str
    attempt: int
    step: int
    rank: int
    world: int
    base: str | None
    determinism: str
    chunk_bytes: int
    group_bytes: dict[str, int]
    spans: dict[str, TensorSpan]
    values: dict[str, Any]
    stretches: tuple[Stretch, ...]
    lines: Lines
    crc32: dict[str, int]


def write_header(folder: Path, slot: str, header: Header) -> None:
    """Declare a slot complete, at once and whole."""
    fresh = folder / f"{slot}.json.new"
    fresh.write_bytes(seal(msgspec.json.encode(header)))
    fresh.replace(folder / f"{slot}.json")


def remove_header(folder: Path, slot: str) -> None:
    """Declare a slot's bytes void."""
    (folder / f"{slot}.json").unlink(missing_ok=True)


def read_header(folder: Path, slot: str) -> Header:
    """Return a slot's header.

    Raises:
        Corrupt: there is none, or not the one that was written.
    """
    file = folder / f"{slot}.json"
    try:
        return msgspec.json.decode(unseal(file.read_bytes(), str(file)), type=Header)
    except OSError as error:
        raise Corrupt(f"{file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise Corrupt(f"{file} is of another format: {error}") from error


def headers(folder: Path) -> Iterator[tuple[str, Header | Corrupt]]:
    """Yield (slot, header) of everything staged in a folder; in place of an unreadable header, why it is so."""
    for file in sorted(folder.glob("*.json")):
        try:
            yield file.stem, read_header(folder, file.stem)
        except Corrupt as error:
            yield file.stem, error


def verified_bytes(folder: Path, header: Header, file: str) -> bytes:
    """Read one of a staged share's files.

    Raises:
        Corrupt: gone, or not what was staged.
    """
    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        raise Corrupt(f"{folder / file}: {error.strerror}") from error
    used = max((s.offset + s.stop - s.start for s in header.stretches if s.file == file), default=0)
    data = data[:used]
    if zlib.crc32(data) != header.crc32.get(file):
        raise Corrupt(f"{folder / file} is not what was staged")
    return data


class MemoryFile:
    """A file mapped into memory, made and faulted in beforehand so that copying into it is only copying."""

    def __init__(self, path: Path, bytes_: int) -> None:
        self.path = path
        self.bytes_ = bytes_
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, max(bytes_, 1))
            os.posix_fallocate(fd, 0, max(bytes_, 1))  # ENOSPC here and now, not a SIGBUS in mid-copy
            populate = getattr(mmap, "MAP_POPULATE", 0)
            self.map = mmap.mmap(fd, max(bytes_, 1), mmap.MAP_SHARED | populate)
        finally:
            os.close(fd)

    def crc32(self, bytes_: int) -> int:
        """Return the CRC-32 of the first bytes."""
        return zlib.crc32(memoryview(self.map)[:bytes_])

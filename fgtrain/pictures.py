"""Picture files: data sets of them, and a structural check that decodes nothing.

Formats are told by their first bytes, never by the suffix.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fgtrain.data import BadImage, Images, Sample
from fgtrain.decoding import decode
from fgtrain.errors import Corrupt
from fgtrain.objects import ObjectPath, Objects, is_url
from fgtrain.preparation import Preparation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""By which data sets that are folders know pictures; lower case."""

_HEAD = 34  # bytes: as far as the BMP fields that are read
_TAIL = 4096  # bytes: room for the padding that cameras and editors put after the end marker
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_TIFF_PLACES = (273, 279, 324, 325)  # StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
_CHUNK = 64  # files a task: enough that handing out tasks costs little beside opening files
_THREADS = 16  # waiting for the disk or the network, not for a core

# A marker that may stand inside a JPEG scan: 0xff followed by anything but stuffing, a restart or fill.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_EOI, _JPEG_SOS = 0xD9, 0xDA


Signature = tuple[int, int]
"""By what a file is told from a changed one: its size and time of change (nanoseconds); (-1, 0): it is not there."""


class PictureFiles(Images, frozen=True):
    """Base of the data sets whose samples are picture files below one folder."""

    def folder(self) -> Path | ObjectPath:
        """Return the folder, or what stands for it in a store, that the samples' names are relative to.

        Raises:
            UserError: it is not there.
        """
        raise NotImplementedError

    def path(self, sample: Sample) -> Path | ObjectPath:
        """Return where the picture is; the file need not exist."""
        return self.folder() / sample.name

    def inspect(self, samples: Iterable[Sample]) -> list[BadImage]:
        """Find pictures that are missing, empty, truncated or not pictures, without decoding them."""
        return find_bad((sample.name, self.path(sample)) for sample in samples)

    def expect(self, samples: Iterable[Sample]) -> None:
        """See `Data.expect`: objects are fetched ahead."""
        for objects, names in self._objects(samples):
            objects.ahead(names)

    def held_bytes(self, samples: Iterable[Sample]) -> int:
        """Return how much of the local disk is taken by copies of the samples' objects; 0 if they are files."""
        return sum(objects.held_bytes(names) for objects, names in self._objects(samples))

    def drop(self, samples: Iterable[Sample]) -> None:
        """Give up the copies of the samples' objects on the local disk; files stay, of course."""
        for objects, names in self._objects(samples):
            objects.drop(names)

    def _objects(self, samples: Iterable[Sample]) -> list[tuple[Objects, list[str]]]:
        """Return the samples' objects; of files, nothing."""
        if not is_url(self.root):
            return []
        paths = [path for sample in samples if isinstance(path := self.path(sample), ObjectPath)]
        return [(paths[0].objects, [path.name for path in paths])] if paths else []

    def signature(self, sample: Sample) -> Signature:
        """Return by what to tell that the file has not changed."""
        try:
            found = self.path(sample).stat()
        except OSError:
            return -1, 0
        return found.st_size, found.st_mtime_ns

    def load(self, sample: Sample, *, hold: bool = True) -> bytes:
        """Return the picture file's bytes; an object's are held on the local disk from now on, unless told not to.

        Raises:
            Corrupt: the file is missing or cannot be read.
        """
        path = self.path(sample)
        try:
            return path.read_bytes(hold=hold) if isinstance(path, ObjectPath) else path.read_bytes()
        except OSError as error:
            raise Corrupt(f"{path}: {error.strerror}") from error

    def read(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """Decode one picture to RGB, shape (H, W, 3), see `decode`.

        Raises:
            Corrupt: the file is missing or cannot be decoded.
        """
        return decode(self.load(sample), str(self.path(sample)))

    def prepared(self, sample: Sample, prepare: Preparation) -> npt.NDArray[np.uint8]:
        """See `Data.prepared`; a large JPEG is decoded at a fraction of its size."""
        return decode(self.load(sample), str(self.path(sample)), prepare)


def find_bad(files: Iterable[tuple[str, Path | ObjectPath]]) -> list[BadImage]:
    """Check (name, path) pairs on threads; report the bad ones in the order given."""
    todo = list(files)
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [bad for found in pool.map(_check, chunks) for bad in found]


def _check(files: list[tuple[str, Path | ObjectPath]]) -> list[BadImage]:
    """Check one task's files."""
    return [BadImage(name, reason) for name, path in files if (reason := flaw(path))]


def flaw(path: Path | ObjectPath) -> str | None:
    """Say in a few words why a file cannot be a whole picture; None if it looks whole.

    Objects in a store are not opened: each would cost a request.
    """
    try:
        if isinstance(path, ObjectPath):
            return None if path.stat().st_size else "empty"
        with path.open("rb", buffering=0) as file:
            return _file_flaw(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return "missing"
    except IsADirectoryError:
        return "a folder, not a file"
    except OSError as error:
        return error.strerror or type(error).__name__


def _file_flaw(file: BinaryIO, size: int) -> str | None:
    """Find the format by its first bytes and run that format's check."""
    if not size:
        return "empty"
    head = file.read(_HEAD)
    for magic, check in _CHECKS:
        if magic.match(head):
            return check(file, head, size)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture (run `git lfs pull`)"
    return f"not a picture (starts with {head[:8]!r})"


def _tail(file: BinaryIO, size: int) -> bytes:
    """Return the last bytes of the file."""
    file.seek(max(0, size - _TAIL))
    return file.read(_TAIL)


def _jpeg_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Look for the end marker near the end and, if it is not there, walk the whole file.

    Phones append whole videos after the picture, so an end marker far from the end is no fault.
    """
    if b"\xff\xd9" in _tail(file, size):
        return None
    file.seek(0)
    return None if jpeg_ends(file.read()) else "truncated JPEG (no end-of-image marker)"


def jpeg_ends(data: bytes) -> bool:
    """Walk a JPEG's segments and scans; true if the end-of-image marker is reached.

    Source: ITU-T T.81, B.1.1 (markers are 0xff and a code; a segment's two length bytes count themselves).
    """
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        code, at = data[marker.start() + 1], marker.end()
        if code == _JPEG_EOI:
            return True
        if len(data) < at + 2:
            return False
        at += int.from_bytes(data[at : at + 2], "big")
    return False


def _png_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Look for the closing chunk near the end and, if it is not there, walk the chunks."""
    if _IEND in _tail(file, size):
        return None
    at = 8
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        at += 12 + length
        if kind == b"IEND" and at <= size:
            return None
    return "truncated PNG (no IEND chunk)"


def _webp_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Compare the file's size with the length in the RIFF header, which does not count its own 8 bytes."""
    promised = 8 + int.from_bytes(head[4:8], "little")
    return None if size >= promised else f"truncated WebP ({size} of {promised} bytes)"


def _bmp_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Check that the pixels of an uncompressed bitmap fit; of others, that they begin inside the file.

    The header's own file size is not used: many writers leave it 0.
    """
    if len(head) < _HEAD:
        return "truncated BMP (no header)"
    offset, header = struct.unpack_from("<II", head, 10)
    promised = offset + 1
    if header >= 40:  # bytes: from BITMAPINFOHEADER on, fields have these widths
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", head, 18)
        if compression == 0:
            promised = offset + (width * bits + 31) // 32 * 4 * abs(height)
    return None if size >= promised else f"truncated BMP ({size} of {promised} bytes)"


def _tiff_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Check that the first directory and the pixels it points to lie inside the file.

    Of BigTIFF (8-byte offsets), only that the directory begins there.
    """
    order = "<" if head.startswith(b"II") else ">"
    big = 43 in head[2:4]
    if len(head) < 16:
        return "truncated TIFF (no header)"
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    promised = directory + 2
    if promised <= size and not big:
        promised = _tiff_end(file, order, directory)
    return None if promised <= size else f"truncated TIFF ({size} of {promised} bytes)"


def _tiff_end(file: BinaryIO, order: str, directory: int) -> int:
    """Return where the directory or the last of the strips or tiles it lists ends, in bytes.

    Source: TIFF 6.0, section 2 (an entry is tag, type, count, value or offset) and the tags' definitions.
    """
    file.seek(directory)
    entries = int(struct.unpack(order + "H", file.read(2))[0])
    table = file.read(12 * entries)
    end = directory + 2 + 12 * entries
    values: dict[int, list[int]] = {}
    for tag, kind, count, where in struct.iter_unpack(order + "HHI4s", table[: len(table) // 12 * 12]):
        width = {3: 2, 4: 4}.get(kind)  # SHORT and LONG
        if tag not in _TIFF_PLACES or not width:
            continue
        if count * width > 4:
            at = int(struct.unpack(order + "I", where)[0])
            end = max(end, at + count * width)
            file.seek(at)
            where = file.read(count * width)
        whole = where[: min(len(where) // width, count) * width]
        values[tag] = [int(v) for (v,) in struct.iter_unpack(order + "_HI"[width // 2], whole)]
    for offsets, counts in (_TIFF_PLACES[:2], _TIFF_PLACES[2:]):
        pieces = zip(values.get(offsets, ()), values.get(counts, ()), strict=False)
        end = max([end, *(offset + count for offset, count in pieces)])
    return end


def _gif_flaw(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Check that there is more than a header; the closing byte is often left out by writers."""
    return None if size > 13 else "truncated GIF (no more than a header)"


_Check = Callable[[BinaryIO, bytes, int], str | None]
_CHECKS: tuple[tuple[re.Pattern[bytes], _Check], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg_flaw),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png_flaw),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp_flaw),
    (re.compile(rb"BM"), _bmp_flaw),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff_flaw),
    (re.compile(rb"GIF8[79]a"), _gif_flaw),
)

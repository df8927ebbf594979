"""What is known of a data set's files, so that they are not read again to know it: as git's index, by size and time.

Objects that are read for this stay on the local disk as far as they may, for the builder (`fgtrain.cache.build`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from fgtrain.data import Sample
from fgtrain.decoding import size
from fgtrain.errors import Corrupt
from fgtrain.pictures import PictureFiles, Signature

_THREADS = 16  # most of the time they wait for the disk or the network
_FORMAT = 2  # raised when what was noted may be wrong: 1 had TIFFs that lie on their side in the wrong size
_SAVE_EVERY = 500  # files: what is lost at most when this is killed


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A file: by what it is told from a changed one, the SHA-256 of its bytes, its picture's size upright.

    A file without a picture that can be used has no digest.
    """

    signature: Signature
    digest: str
    width: int
    height: int


def look(data: PictureFiles, samples: Iterable[Sample], place: Path) -> Generator[tuple[int, int], None, list[Known]]:
    """Return what is known of each sample's file, having read those that are new or changed.

    Args:
        data: whose files.
        samples: which.
        place: the cache's folder.

    Yields:
        Now and then, how many files have been read, of how many.
    """
    file = place / "sources" / f"{_id(data)}.json"
    known = _load(file)
    wanted = list(samples)
    signatures = {s.name: data.signature(s) for s in wanted}
    new = [s for s in {s.name: s for s in wanted}.values() if not _same(known.get(s.name), signatures[s.name])]
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(new), _SAVE_EVERY):
            some = new[start : start + _SAVE_EVERY]
            known |= {
                s.name: k for s, k in zip(some, pool.map(lambda s: _read(data, s, signatures), some), strict=True)
            }
            _save(file, known)
            yield start + len(some), len(new)
    return [known[s.name] for s in wanted]


def _same(known: Known | None, signature: Signature) -> bool:
    return known is not None and known.signature == signature


def _read(data: PictureFiles, sample: Sample, signatures: dict[str, Signature]) -> Known:
    signature = signatures[sample.name]
    try:
        content = data.load(sample)
        width, height = size(content, sample.name)
    except Corrupt:
        return Known(signature, "", 0, 0)
    return Known(signature, hashlib.sha256(content).hexdigest(), width, height)


def _id(data: PictureFiles) -> str:
    return hashlib.sha256(f"{_FORMAT} {data.folder()}".encode(errors="surrogateescape")).hexdigest()[:16]


def _load(file: Path) -> dict[str, Known]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Known])
    except (OSError, msgspec.DecodeError):
        return {}


def _save(file: Path, known: dict[str, Known]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_bytes(msgspec.json.encode(known))
    part.replace(file)

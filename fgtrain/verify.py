"""Whether snapshots are whole: each chunk is looked at once, however many snapshots share it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fgtrain.errors import Corrupt
from fgtrain.manifest import Manifest
from fgtrain.references import STREAMS
from fgtrain.runstore import RunStore

Check = Callable[[RunStore, str, int], None]
"""Raises `Corrupt` unless the chunk of this digest and size in bytes is sound."""


def by_size(runs: RunStore, digest: str, bytes_: int) -> None:
    """Ask the store whether the chunk is there and how long it is: quick, and blind to altered bytes."""
    runs.check_size(digest, bytes_)


def by_bytes(runs: RunStore, digest: str, bytes_: int) -> None:
    """Read the chunk and compare its SHA-256, as a recovery does."""
    runs.get_chunk(digest)


class Verifier:
    """Looks at snapshots of one run, and remembers what it has seen."""

    def __init__(self, runs: RunStore, check: Check, streams: int = STREAMS) -> None:
        self._runs = runs
        self._check = check
        self._streams = streams
        self._seen: dict[str, str | None] = {}  # digest -> what is wrong with it
        self.bytes_ = 0  # of all chunks looked at

    def problem(self, manifest: Manifest) -> str | None:
        """Return what is wrong with a snapshot, None if nothing is.

        Raises:
            StoreUnavailable: the store failed, which says nothing about the snapshot.
        """
        chunks = manifest.chunks()
        new = {digest: bytes_ for digest, bytes_ in chunks.items() if digest not in self._seen}
        with ThreadPoolExecutor(self._streams) as pool:
            self._seen.update(zip(new, pool.map(self._look, new.items()), strict=True))
        self.bytes_ += sum(new.values())
        wrong = [self._seen[d] for d in chunks if self._seen[d] is not None]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"{wrong[0]}{more}" if wrong else None

    def _look(self, chunk: tuple[str, int]) -> str | None:
        try:
            self._check(self._runs, *chunk)
        except Corrupt as error:
            return str(error)
        return None

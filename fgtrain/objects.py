"""Data sets in object storage: `data.root=s3://bucket/prefix`, read through a bounded cache on the local disk.

Objects are taken to be what they were when they were listed, which each process does once. A copy on disk is named by
URL, key, size and time, so that a replaced object is not taken for the old one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from fgtrain.cache import cache_place
from fgtrain.errors import FglaunchError, KeyMissing, UserError
from fgtrain.held import Held
from fgtrain.stores import Entry, open_store

_THREADS = 16  # downloads at a time: they wait for the network
_LIMIT_GB = 50.0


class Stat(NamedTuple):
    """What `os.stat` says of a file, as far as it makes sense of an object."""

    st_size: int
    st_mtime_ns: int


class Objects:
    """The objects below a URL, by names in NFC, whatever form their keys have."""

    def __init__(self, url: str, held: Held) -> None:
        self.url = url.rstrip("/")
        self._store, self._held = open_store(self.url), held
        self._entries: dict[str, Entry] | None = None
        self._wanted: queue.SimpleQueue[str] | None = None
        self._wanted_by = 0

    def entries(self) -> dict[str, Entry]:
        """Return all objects by name.

        Raises:
            UserError: two names differ in their Unicode form only.
            StoreUnavailable: worth another try.
        """
        if self._entries is None:
            found: dict[str, Entry] = {}
            for entry in self._store.list():
                name = unicodedata.normalize("NFC", entry.key)
                if name in found:
                    raise UserError(f"data.root={self.url}: holds {name!r} twice, in two Unicode forms; remove one")
                found[name] = entry
            self._entries = found
        return self._entries

    def read(self, name: str, *, hold: bool = True) -> bytes:
        """Return an object's bytes.

        Args:
            name: whose.
            hold: whether to keep them on the local disk if they are not there; not if this is the last time.

        Raises:
            FileNotFoundError: no such object.
            OSError: it is not what it was when it was listed.
            StoreUnavailable: worth another try.
        """
        entry = self.entries().get(name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        local = self._local(entry)
        data = self._held.get(local)
        if data is None or len(data) != entry.bytes_:
            try:
                data = self._store.get(entry.key)
            except KeyMissing:
                raise FileNotFoundError(errno.ENOENT, "no such object any more") from None
            if len(data) != entry.bytes_:
                raise OSError(errno.ESTALE, "has changed since it was listed")
            if hold:
                self._held.put(local, data)
        return data

    def held_bytes(self, names: Iterable[str]) -> int:
        """Return how much room the copies of objects take on the local disk."""
        return sum(self._held.bytes_of(self._local(entry)) for entry in self._known(names))

    def drop(self, names: Iterable[str]) -> None:
        """Give up the copies of objects on the local disk."""
        self._held.drop(self._local(entry) for entry in self._known(names))

    def _known(self, names: Iterable[str]) -> Iterator[Entry]:
        return (entry for name in names if (entry := self.entries().get(name)))

    def ahead(self, names: Iterable[str]) -> None:
        """Have objects fetched by threads, in this order; what goes wrong will be met by who reads them."""
        if not self._held.holds:
            return
        if self._wanted is None or self._wanted_by != os.getpid():
            self._wanted, self._wanted_by = queue.SimpleQueue(), os.getpid()
            for number in range(_THREADS):
                threading.Thread(target=self._fetch, args=(self._wanted,), name=f"ahead-{number}", daemon=True).start()
        for name in names:
            self._wanted.put(name)

    def _fetch(self, wanted: queue.SimpleQueue[str]) -> None:
        while True:
            name = wanted.get()
            with contextlib.suppress(FglaunchError, OSError):
                entry = self.entries().get(name)
                if entry and not self._held.has(self._local(entry)):
                    self.read(name)

    def _local(self, entry: Entry) -> str:
        text = f"{self.url}\n{entry.key}\n{entry.bytes_}\n{entry.modified!r}"
        return hashlib.sha256(text.encode()).hexdigest()


class ObjectPath:
    """A place below the URL of some objects: as much of `pathlib.Path` as data sets use."""

    def __init__(self, objects: Objects, name: str = "") -> None:
        self.objects, self.name = objects, name

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.objects, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        return f"{self.objects.url}/{self.name}" if self.name else self.objects.url

    def is_file(self) -> bool:
        """Tell whether there is an object of this name."""
        return self.name in self.objects.entries()

    def is_dir(self) -> bool:
        """Tell whether there are objects below this name."""
        return bool(self.below())

    def below(self) -> list[str]:
        """Return the names of all objects below this place, relative to it."""
        start = f"{self.name}/" if self.name else ""
        return [name.removeprefix(start) for name in self.objects.entries() if name.startswith(start)]

    def stat(self) -> Stat:
        """Describe the object.

        Raises:
            FileNotFoundError: no such object.
        """
        entry = self.objects.entries().get(self.name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        return Stat(entry.bytes_, round(entry.modified * 1e9))

    def read_bytes(self, *, hold: bool = True) -> bytes:
        """See `Objects.read`."""
        return self.objects.read(self.name, hold=hold)


def is_url(root: str) -> bool:
    """Tell whether a root names objects in a store, not a folder."""
    return "://" in root


@lru_cache(maxsize=8)  # `read` asks once a picture
def open_root(root: str) -> ObjectPath:
    """Open the objects below a URL.

    Raises:
        UserError: unknown scheme, a missing extra, or $FGLAUNCH_CACHE_GB is not a number.
    """
    return ObjectPath(Objects(root, Held(cache_place() / "objects", limit_bytes())))


def limit_bytes() -> int:
    """Return how much of the local disk objects may take: $FGLAUNCH_CACHE_GB.

    Raises:
        UserError: it is not a number.
    """
    text = os.environ.get("FGLAUNCH_CACHE_GB", f"{_LIMIT_GB}")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UserError(
            f"FGLAUNCH_CACHE_GB={text}: it must be a number, 0 or more, of GB for objects on the local disk"
        )
    return int(limit * 1e9)

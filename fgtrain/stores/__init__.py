"""Stores: bytes by key. Each file in this package is one, found by the scheme of its URL.

Keys are `/`-separated, relative, without empty, `.` or `..` segments and without control characters. No key
may be the folder of another (`a` and `a/b`): a folder of files cannot hold both. Objects are written whole: a
reader sees all of an object's bytes or none. Every store passes the contract, `tests/contracts/store.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
import uuid
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from fgtrain.errors import KeyExists, KeyMissing, UserError


class Entry(NamedTuple):
    """One object of a listing: its key, size in bytes and time of last write (Unix seconds)."""

    key: str
    bytes_: int
    modified: float


class Abilities(NamedTuple):
    """What a store was seen to do.

    Some vendors ignore or refuse the condition of a conditional create; `create` is no more than `put` there.
    """

    conditional_create: bool


class Store(Protocol):
    """Bytes by key, below one URL."""

    url: str

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an object, replacing the one that is there.

        Raises:
            StoreUnavailable: it may or may not have been written.
        """

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write an object only if there is none: of several callers, one wins.

        Raises:
            KeyExists: an object with this key is there already.
            StoreUnavailable: it may or may not have been written.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read an object, or its bytes [start, end).

        Raises:
            KeyMissing: no such object.
            StoreUnavailable: worth another try.
        """

    def head(self, key: str) -> Entry:
        """Describe an object.

        Raises:
            KeyMissing: no such object.
            StoreUnavailable: worth another try.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose key starts with `prefix` (a plain string), in key order, however many.

        Raises:
            StoreUnavailable: worth another try, from the beginning.
        """

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def check(self) -> Abilities:
        """Write, create twice, read and delete a probe, so that a bad store is found before anything starts.

        Raises:
            UserError: names the URL and what to do (create the bucket, set credentials, grant writing, ...).
        """


@runtime_checkable
class Copier(Protocol):
    """What a store may offer beside `Store`: copies that do not travel through this process."""

    def copy(self, source: str, target: str) -> None:
        """Write what `source` holds under `target` too, as a write of now, replacing what is there.

        Raises:
            KeyMissing: no object called `source`.
            StoreUnavailable: it may or may not have been written.
        """


@runtime_checkable
class Fetcher(Protocol):
    """What a store may offer beside `Store`: reads that go straight to where the bytes are wanted."""

    def fetch(self, key: str, into: memoryview) -> int:
        """Read an object into memory (contiguous bytes) and return the object's size.

        Of a size other than `into` has, what is in `into` then means nothing.

        Raises:
            KeyMissing: no such object.
            StoreUnavailable: worth another try.
        """


def fetch(store: Store, key: str, into: memoryview) -> int:
    """Read an object into memory, without a copy where the store can. See `Fetcher.fetch`."""
    if isinstance(store, Fetcher):
        return store.fetch(key, into)
    data = store.get(key)
    if len(data) == len(into):
        into[:] = data
    return len(data)


def copy(store: Store, source: str, target: str) -> None:
    """Copy an object within a store, by the store itself where it can. See `Copier.copy`."""
    if isinstance(store, Copier):
        store.copy(source, target)
    else:
        store.put(target, store.get(source))


def now(store: Store) -> float:
    """Return the time by the store's own clock, which is the one that `Entry.modified` is told by (Unix seconds)."""
    key = f"probe/{uuid.uuid4().hex}"
    store.put(key, b"what time is it")
    try:
        return store.head(key).modified
    finally:
        store.delete(key)


def open_store(url: str) -> Store:
    """Open the store at a URL such as `file:///runs`, a bare path, `s3://bucket/prefix` or `memory://name`.

    Raises:
        UserError: unknown scheme, or the extra that it needs is not installed.
    """
    scheme = urlsplit(url).scheme if "://" in url else "file"
    known = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if scheme not in known:
        raise UserError(f"store {url}: unknown scheme {scheme!r}; there are {', '.join(known)}")
    store: Store = importlib.import_module(f"{__name__}.{scheme}").open_store(url)
    return store


def valid_key(key: str) -> str:
    """Return the key if every store can hold it.

    Raises:
        ValueError: a mistake of the calling code, never of the user.
    """
    segments = key.split("/")
    if any(s in ("", ".", "..") for s in segments) or any(c < " " or c == "\x7f" for c in key):
        raise ValueError(f"not a store key: {key!r}")
    key.encode()  # lone surrogates: UnicodeEncodeError is a ValueError
    return key


def probe(store: Store) -> Abilities:
    """Use every operation once on keys of its own: the common part of `Store.check`.

    Raises:
        UserError: the store does not give back what was written, or does not list it.
        StoreError: whatever the operations raise.
    """
    key = f"probe/{uuid.uuid4().hex}"
    store.create(key, b"first")
    try:
        conditional = _second_create_loses(store, key)
        store.put(key, b"kept")
        if store.get(key) != b"kept" or [e.key for e in store.list(key)] != [key]:
            raise UserError(f"store {store.url}: a probe object was written but is not read back and listed")
    finally:
        store.delete(key)
    try:
        store.get(key)
    except KeyMissing:
        return Abilities(conditional_create=conditional)
    raise UserError(f"store {store.url}: a probe object was deleted and is still read; grant deleting")


def _second_create_loses(store: Store, key: str) -> bool:
    try:
        store.create(key, b"second")
    except KeyExists:
        return store.get(key) == b"first"
    return False

"""`file:///folder` or a bare path: one file an object, below a folder on a POSIX file system.

An object is written to `.tmp/` in the folder, synced, and then renamed (put) or hard-linked (create) to its
name, so a reader sees all of it or none, a loser of a race never sees its own bytes, and what is acknowledged
survives a crash of the machine. A killed writer leaves a file in `.tmp/`, which a later `check` sweeps.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fgtrain.errors import KeyExists, KeyMissing, StoreUnavailable, UserError
from fgtrain.stores import Abilities, Entry, probe, valid_key

TEMPORARY = ".tmp"
# Longer than any write takes; a younger file in .tmp may belong to a writer that lives.
STALE_S = 24 * 3600.0
# A folder may vanish between its making and the rename into it, when the last other object in it is deleted.
PLACE_ATTEMPTS = 100
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class FileStore:
    """Objects as files below `root`, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`."""
        path = self._path(key)
        with self._faults(), self._synced_copy(data) as copy:
            _place(path, lambda: copy.replace(path))

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.create`."""
        path = self._path(key)
        with self._faults(), self._synced_copy(data) as copy:
            try:
                _place(path, lambda: path.hardlink_to(copy))
            except FileExistsError as error:
                # NFS may answer a repeated request with EEXIST after the first one did the work.
                if copy.stat().st_nlink == 1:
                    raise KeyExists(f"{self.url}/{key}") from error
            except OSError as error:
                if error.errno in NO_HARD_LINKS:
                    raise StoreUnavailable(
                        f"store {self.url}: this file system cannot create a file exclusively (no hard links)"
                    ) from error
                raise

    def copy(self, source: str, target: str) -> None:
        """See `Copier.copy`. A second name for the same bytes, which are never changed in place: nothing is copied."""
        origin, path = self._path(source), self._path(target)
        link = self.root / TEMPORARY / uuid.uuid4().hex
        with self._faults(source):
            try:
                _make_folders(link.parent)
                link.hardlink_to(origin)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                self.put(target, self.get(source))
                return
            try:
                os.utime(link)  # of both names, which is why a copy makes its source younger too
                _place(path, lambda: link.replace(path))
            finally:
                link.unlink(missing_ok=True)  # replace() does nothing where both are names of one file already

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store.get`."""
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"bytes [{start}, {end}) of {key!r}: positions count from the start")
        path = self._path(key)
        with self._faults(key), path.open("rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(max(0, end - start))

    def fetch(self, key: str, into: memoryview) -> int:
        """See `Fetcher.fetch`."""
        with self._faults(key), self._path(key).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            done = 0
            while size == len(into) and done < size:
                read = file.readinto(into[done:])
                if not read:
                    raise OSError(errno.EIO, "the file ends early")
                done += read
            return size

    def head(self, key: str) -> Entry:
        """See `Store.head`."""
        path = self._path(key)
        with self._faults(key):
            status = path.stat()
        if path.is_dir():
            raise KeyMissing(f"{self.url}/{key}")
        return Entry(key, status.st_size, status.st_mtime)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`."""
        with self._faults():
            yield from _walk(self.root, "", prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`. Folders that this empties go too."""
        path = self._path(key)
        with self._faults():
            if path.is_dir():  # no object
                return
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            with suppress(FileNotFoundError):  # another deleter emptied the folder and removed it
                _sync(path.parent)
            with suppress(OSError):  # the first folder that is not empty
                for folder in path.relative_to(self.root).parents[:-1]:
                    (self.root / folder).rmdir()

    def check(self) -> Abilities:
        """See `Store.check`."""
        try:
            self._sweep()
            return probe(self)
        except StoreUnavailable as error:
            raise UserError(str(error)) from error

    def _path(self, key: str) -> Path:
        if valid_key(key).split("/")[0] == TEMPORARY:
            raise ValueError(f"not a store key: {key!r} is kept for files being written")
        return self.root / key

    @contextmanager
    def _synced_copy(self, data: bytes | memoryview) -> Iterator[Path]:
        """A file in `.tmp/` that holds the data on disk; it is removed, under this name, afterwards."""
        folder = self.root / TEMPORARY
        _make_folders(folder)
        copy = folder / uuid.uuid4().hex
        try:
            with copy.open("xb", buffering=0) as file:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            yield copy
        finally:
            with suppress(OSError):
                copy.unlink()

    @contextmanager
    def _faults(self, key: str | None = None) -> Iterator[None]:
        """Turn the system's errors into the project's; with a key, no such file is `KeyMissing`."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if key is None:
                raise StoreUnavailable(f"store {self.url}: {_reason(error)}") from error
            raise KeyMissing(f"{self.url}/{key}") from error
        except OSError as error:
            raise StoreUnavailable(f"store {self.url}: {_reason(error)}") from error

    def _sweep(self) -> None:
        """Remove what killed writers left behind."""
        with self._faults():
            for file in (self.root / TEMPORARY).glob("*"):
                with suppress(FileNotFoundError):
                    if file.stat().st_mtime < time.time() - STALE_S:
                        file.unlink()


def _place(path: Path, name: Callable[[], object]) -> None:
    """Give a file its name and make the name durable."""
    for attempt in range(PLACE_ATTEMPTS):
        try:
            _make_folders(path.parent)
            name()
            break
        except FileNotFoundError:
            if attempt == PLACE_ATTEMPTS - 1:
                raise
    with suppress(FileNotFoundError):  # deleted again already, with its folder
        _sync(path.parent)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, durably.

    Raises:
        NotADirectoryError: one of them is a file.
    """
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError as error:  # as a file; or by another writer, and a deleter may have taken it away again
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder)) from error
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, above: str, prefix: str) -> Iterator[Entry]:
    """Yield the files below a folder whose key is `above` (empty or ending in `/`), in key order."""
    try:
        with os.scandir(folder) as scan:
            # A folder sorts as the keys in it do: `a-b` < `a/c` < `ab`.
            names = {e.name + "/" * e.is_dir(): e for e in scan}
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(names):
        key = above + name
        if key == f"{TEMPORARY}/":
            continue
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(folder / name, key, prefix)
        elif key.startswith(prefix):
            with suppress(FileNotFoundError):
                status = names[name].stat()
                yield Entry(key, status.st_size, status.st_mtime)


def _reason(error: OSError) -> str:
    """What happened, in the user's words."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full, or the quota is used up; free some space"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"no permission to write or read{where}; grant it, or choose another folder"
    if isinstance(error, NotADirectoryError):
        return f"a file lies where a folder must be{where}; choose another folder"
    if isinstance(error, IsADirectoryError):
        return f"a folder lies where the object must be{where}"
    return f"{error.strerror or error}{where}"


def open_store(url: str) -> FileStore:
    """Open the store below a folder: `file:///folder` or a bare path, also a relative one or one with `~`.

    The path is taken as it is written: nothing in it is percent-decoded.

    Raises:
        UserError: the URL has a host, or names no folder.
    """
    path = url.removeprefix("file://")
    if path != url and not path.startswith("/"):
        raise UserError(f"store {url}: write file:///absolute/path, or the path alone")
    if not path or "\0" in path:
        raise UserError(f"store {url!r}: names no folder")
    try:
        # absolute(), not resolve(): a link stays a link, so that the user knows the path again in messages.
        return FileStore(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"store {url}: {error}") from error

"""An uploader that is killed at a given store request: `python -m tests.testbed.doomed` forks one a line it reads.

A line is JSON: {"store": folder, "staged": folder, "last": name, "request": number, "how": how}; the answer is the
number of requests made, or "killed".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from fgtrain.runstore import RunStore
from fgtrain.snapshot.staged import read_header
from fgtrain.snapshot.upload import Uploader
from fgtrain.stores import Abilities, Entry
from fgtrain.stores.file import TEMPORARY, FileStore

RUN, STEP, WORLD, ATTEMPT = "doomed", 20, 2, 1
HOW = ("before", "after", "in mid-body", "torn")


class DoomedStore:
    """A folder of files, until the request `number` (from 0), at which this process is killed.

    How: before it has an effect, after it, in mid-body (half of it in a temporary file), or torn (half of it in place:
    no store of this project does that, and a poor vendor might).
    """

    def __init__(self, inner: FileStore, number: int, how: str) -> None:
        self.inner, self.url, self.number, self.how = inner, inner.url, number, how
        self.requests = 0
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes | memoryview) -> None:
        doomed = self._count()
        if doomed and self.how in ("in mid-body", "torn"):
            self._half(key, bytes(data))
        self.inner.put(key, data)
        if doomed:
            die()

    def create(self, key: str, data: bytes | memoryview) -> None:
        doomed = self._count()
        if doomed and self.how in ("in mid-body", "torn"):
            self._half(key, bytes(data))
        self.inner.create(key, data)
        if doomed:
            die()

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._count()
        return self.inner.get(key, start, end)

    def head(self, key: str) -> Entry:
        self._count()
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self._count()
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        doomed = self._count()
        self.inner.delete(key)
        if doomed:
            die()

    def check(self) -> Abilities:
        return self.inner.check()

    def _count(self) -> bool:
        with self._lock:
            doomed = self.requests == self.number
            self.requests += 1
        if doomed and self.how == "before":
            die()
        return doomed

    def _half(self, key: str, data: bytes) -> NoReturn:
        half = data[: len(data) // 2]
        if self.how == "torn":
            self.inner.put(key, half)
        else:
            folder = self.inner.root / TEMPORARY
            folder.mkdir(exist_ok=True)
            (folder / uuid.uuid4().hex).write_bytes(half)
        die()


def die() -> NoReturn:
    """Be gone at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def take_snapshot(order: dict[str, Any]) -> int:
    """Store both ranks' shares and commit; returns the number of requests."""
    store = DoomedStore(FileStore(Path(order["store"])), order["request"], order["how"])
    runs = RunStore(store, RUN)
    last = RunStore(store.inner, RUN).manifest(order["last"])
    headers, uploaders = [], []
    for rank in range(WORLD):
        folder = Path(order["staged"]) / str(rank)
        headers.append(read_header(folder, f"slot{STEP}"))
        uploaders.append(Uploader(runs, folder, ATTEMPT, rank, last, trusted=frozenset(last.chunks())))
    for rank in reversed(range(WORLD)):
        uploaders[rank].store_share(headers[rank])
    uploaders[0].commit(headers[0])
    uploaders[0].clean(STEP)
    return store.requests


def main() -> None:
    """Serve."""
    for line in sys.stdin:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.write(theirs, str(take_snapshot(json.loads(line))).encode())
            os._exit(0)
        os.close(theirs)
        answer = os.read(ours, 100).decode()
        os.close(ours)
        _, status = os.waitpid(child, 0)
        print("killed" if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else answer or "failed", flush=True)


if __name__ == "__main__":
    main()

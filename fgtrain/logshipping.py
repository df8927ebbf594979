"""Shipping a node's logs to the store while they are written: little by little, never a byte twice, never in a hurry.

A stretch is at most `SEGMENT_BYTES`; a log that is written to all the time gets an object every `_PERIOD_S`, ever more
rarely as it has more of them; of one that grows faster than that, the middle is left out. A store that fails is tried
again ever more rarely. Nothing here can hold training up: it is another process's work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fgtrain import logs
from fgtrain.errors import StoreError
from fgtrain.logs import Stream
from fgtrain.runstore import RunStore

SEGMENT_BYTES = 1 << 20
BACKLOG_BYTES = 16 << 20
"""More than this not yet shipped: only the last `SEGMENT_BYTES` are."""

_PERIOD_S = (0.5, 20.0)
_SLOWER_S = 0.05  # for each object that a stream has
_RETRY_S = (1.0, 60.0)


class Shipper:
    """Ships the logs of one node's folder, from `tick` to `tick`."""

    def __init__(
        self,
        runs: RunStore,
        folder: Path,
        node: str,
        *,
        start_ms: int,
        clock: Callable[[], float] = time.monotonic,
        alive: Callable[[int], bool] | None = None,
    ) -> None:
        """`start_ms`: when this node's agent began (Unix milliseconds); `alive` tells whether a process is there."""
        self._runs, self._folder, self._node, self._start_ms = runs, folder, node, start_ms
        self._clock, self._alive = clock, alive or _alive
        self._logs: dict[Path, _Log] = {}
        self._began = {f: f.stat().st_size for f in folder.glob("*.log")}  # what earlier lives wrote is not this one's
        self._retry_s, self._not_before = _RETRY_S[0], 0.0
        self.failure = ""
        """Why the store could not be written to last time; "" if it could."""

    def tick(self) -> None:
        """Ship what is due."""
        self._look()
        if self._clock() >= self._not_before:
            self._round(lambda log: log.due <= self._clock())

    def finish(self, timeout_s: float) -> bool:
        """Ship the rest, whatever is due when; tells whether all of it arrived within about `timeout_s`.

        A stretch of each log is tried in any case: a machine that stood still may have no time left.
        """
        deadline = self._clock() + timeout_s
        self._look(ended=True)
        while self._round(lambda log: True):
            if self._clock() >= deadline:
                return False
        return not self.failure

    # -- what there is --------------------------------------------------------------------------------------------

    def _look(self, *, ended: bool = False) -> None:
        """Take up new logs. A new one may mean that an old one has seen its last line: all are due."""
        before = len(self._logs)
        for path, stream, skipped in self._streams(ended=ended):
            if path not in self._logs:
                self._logs[path] = _Log(path, stream, skipped)
        if len(self._logs) > before:
            for log in self._logs.values():
                log.due = 0.0

    def _streams(self, *, ended: bool) -> Iterator[tuple[Path, Stream, int]]:
        """Yield each log with its stream and how many of its first bytes are not the stream's."""
        for path in self._folder.glob("*.log"):
            skipped = min(self._began.get(path, 0), _size(path))
            yield path, logs.node_stream(path.stem, self._node, self._start_ms), skipped
        for path in (self._folder / "logs").glob("*.log"):
            if found := logs.LOCAL_RANK_LOG.fullmatch(path.name):
                yield path, logs.rank_stream(int(found[1]), int(found[2])), 0
            elif (found := logs.LOCAL_STARTING_LOG.fullmatch(path.name)) and (ended or not self._alive(int(found[1]))):
                yield path, logs.starting_stream(self._node, int(found[1])), 0  # it will get no other name any more

    # -- shipping -------------------------------------------------------------------------------------------------

    def _round(self, due: Callable[[_Log], bool]) -> bool:
        """Ship one stretch of each log that is due and has grown; tells whether there was any, and no failure."""
        shipped = False
        try:
            for log in [log for log in self._logs.values() if due(log)]:
                shipped |= self._ship(log)
        except StoreError as error:
            self.failure = str(error)
            self._not_before = self._clock() + self._retry_s
            self._retry_s = min(_RETRY_S[1], 2 * self._retry_s)
            return False
        self.failure, self._retry_s = "", _RETRY_S[0]
        return shipped

    def _ship(self, log: _Log) -> bool:
        if _size(log.path) <= log.skipped + log.shipped:
            return False
        if not log.looked_up:
            log.shipped, log.looked_up = max(log.shipped, self._end(log.stream)), True
        data = log.next()
        if data:
            self._runs.store.put(logs.segment_key(self._runs, log.stream, log.shipped), data)
            log.shipped += len(data)
            log.objects += 1
            log.due = self._clock() + min(_PERIOD_S[1], _PERIOD_S[0] + _SLOWER_S * log.objects)
        return bool(data)

    def _end(self, stream: Stream) -> int:
        """Return how much of a stream the store has from an earlier life of this node's attendant."""
        return max((segment.stop for _, segment in logs.segments(self._runs, f"{stream.name}/")), default=0)


class _Log:
    """One log file. `skipped`: how many of its bytes belong to another stream; `shipped` counts after those."""

    def __init__(self, path: Path, stream: Stream, skipped: int) -> None:
        self.path, self.stream, self.skipped = path, stream, skipped
        self.shipped = self.objects = 0
        self.looked_up = False
        self.due = 0.0

    def next(self) -> bytes:
        """Read the next stretch; leaves out the middle of what has grown too fast."""
        backlog = _size(self.path) - self.skipped - self.shipped
        if backlog > BACKLOG_BYTES:
            self.shipped += backlog - SEGMENT_BYTES
        with suppress(OSError), self.path.open("rb") as file:  # it has another name by now
            file.seek(self.skipped + self.shipped)
            return file.read(SEGMENT_BYTES)
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""What the ranks and agents of a run wrote: from the store, and from this machine's files where they know more."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fgtrain import logs
from fgtrain.errors import StoreError
from fgtrain.logs import Segment, Stream
from fgtrain.runstore import Attempt, RunStore

_BLOCK = 1 << 20  # bytes of a file at a time


class Wanted(NamedTuple):
    """Which logs: of an attempt (None: the newest, 0: before any), of a rank (None: of all); `agents`: theirs."""

    attempt: int | None = None
    rank: int | None = None
    agents: bool = False


class Source:
    """One log, wherever its bytes are."""

    def __init__(self, stream: Stream, segments: list[Segment], file: Path | None) -> None:
        self.stream, self.segments, self.file = stream, segments, file

    @property
    def modified(self) -> float:
        """When something was last added, as far as known (Unix seconds)."""
        return max([s.modified for s in self.segments[-1:]] + ([_modified(self.file)] if self.file else []), default=0)

    def read(self, store_get: Callable[[str], bytes], position: int) -> Iterator[tuple[bytes, int]]:
        """Yield what there is from `position` on, each piece with the position after it.

        From the file if it has more than the store, piece by piece from the store otherwise. What is missing is named.
        """
        stop = max((s.stop for s in self.segments), default=0)
        if self.file and _size(self.file) >= max(stop, 1):
            with self.file.open("rb") as file:
                file.seek(position)
                while data := file.read(_BLOCK):
                    position += len(data)
                    yield data, position
            return
        first = max(0, bisect.bisect_right([s.start for s in self.segments], position) - 1)
        for segment in self.segments[first:]:
            if segment.stop <= position:
                continue
            if segment.start > position:
                yield f"\n[{segment.start - position:,} bytes were not shipped]\n".encode(), segment.start
                position = segment.start
            yield store_get(segment.key)[position - segment.start :], segment.stop
            position = segment.stop


def title(stream: Stream) -> str:
    """Return what to print above a log. Pure."""
    if stream.program:
        return f"{stream.program} of {stream.node}"
    if stream.rank is None:
        return f"before an attempt, {stream.node} (process {stream.number})"
    return f"attempt {stream.attempt}, rank {stream.rank}"


class View:
    """The logs of one run as they are now; ask again for what has been added."""

    def __init__(self, runs: RunStore, folders: Callable[[], list[Path]], wanted: Wanted) -> None:
        """`folders` returns the working folders of the run's nodes that may be on this machine."""
        self._runs, self._folders, self._wanted = runs, folders, wanted
        self.positions: dict[str, int] = {}

    def new(self) -> Iterator[tuple[Stream, bytes]]:
        """Yield what was added since last asked, log by log.

        Raises:
            StoreError: the store does not answer; asking again goes on where this ended.
        """
        for source in self.sources():
            name = source.stream.name
            for data, position in source.read(self._runs.store.get, self.positions.get(name, 0)):
                yield source.stream, data
                self.positions[name] = position

    def sources(self) -> list[Source]:
        """Return the wanted logs that there are."""
        files = dict(self._local())
        if self._wanted.agents:
            return _newest_lives(self._merged(files, ""))
        attempt = self._attempt(files) if self._wanted.attempt is None else self._wanted.attempt
        found = self._merged(files, f"{attempt:05d}-") if attempt else []
        found = [s for s in found if s.stream.attempt == attempt and self._wanted.rank in (None, s.stream.rank)]
        if self._wanted.rank is None and (self._wanted.attempt is None or attempt == 0):
            found += self._starting(files, attempt)
        return found

    def _starting(self, files: dict[str, tuple[Stream, Path]], attempt: int) -> list[Source]:
        """Return the logs of ranks that ended before they knew an attempt: those after the newest, all if asked for."""
        found = [s for s in self._merged(files, "starting-") if s.stream.rank is None and not s.stream.program]
        since = 0.0 if self._wanted.attempt == 0 else self._begun(attempt)
        return sorted((s for s in found if s.modified > since), key=lambda s: s.modified)

    def _begun(self, attempt: int) -> float:
        try:
            return self._runs.read(f"attempts/{attempt:05d}.json", Attempt).started if attempt else 0.0
        except StoreError:
            return 0.0

    def _attempt(self, files: dict[str, tuple[Stream, Path]]) -> int:
        """Return the newest attempt that has a log or was begun; 0 if none."""
        return max([s.attempt for s, _ in files.values()] + self._runs.attempts(), default=0)

    def _local(self) -> Iterator[tuple[str, tuple[Stream, Path]]]:
        for folder in self._folders():
            for path in (folder / "logs").glob("*.log"):
                if found := logs.LOCAL_RANK_LOG.fullmatch(path.name):
                    stream = logs.rank_stream(int(found[1]), int(found[2]))
                elif found := logs.LOCAL_STARTING_LOG.fullmatch(path.name):
                    stream = logs.starting_stream(folder.name, int(found[1]))
                else:
                    continue
                yield stream.name, (stream, path)
            for path in folder.glob("*.log"):
                stream = logs.node_stream(path.stem, folder.name, 0)  # all lives of it
                yield stream.name, (stream, path)

    def _merged(self, files: dict[str, tuple[Stream, Path]], prefix: str) -> list[Source]:
        """Return the logs, wherever they are, whose name starts with `prefix`, in order."""
        merged = {name: Source(s, [], path) for name, (s, path) in files.items() if name.startswith(prefix)}
        for stream, segment in logs.segments(self._runs, prefix):
            merged.setdefault(stream.name, Source(stream, [], None)).segments.append(segment)
        return sorted(merged.values(), key=lambda s: s.stream[1:])


def _newest_lives(sources: list[Source]) -> list[Source]:
    """Of each program of each node, return its file on this machine, else its newest life in the store."""
    newest: dict[tuple[str, str], Source] = {}
    for source in (s for s in sources if s.stream.program):
        key = (source.stream.program, source.stream.node)
        other = newest.get(key)
        if other is None or not other.file and source.stream.number > other.stream.number:
            newest[key] = source
    return list(newest.values())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

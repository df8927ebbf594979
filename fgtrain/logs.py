"""Logs in the store: `runs/<run>/logs/<stream>/<offset>`, each object a stretch of one log, never written again. Light.

A stream is named by what wrote it:

    <attempt>-<rank>            a rank, from its attempt's first line on
    starting-<node>-<pid>       a rank that ended before it knew its attempt
    <name>.<node>.<start>       one life of a node's agent, or of what runs beside it: <name>.log, since <start> (ms)

The key tells where a stretch begins, so whoever reads finds what is missing and what is there twice, and whoever ships
goes on where another has left off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from fgtrain.runstore import RunStore

FOLDER = "logs"
LOCAL_RANK_LOG = re.compile(r"(\d{5,})-(\d{5,})\.log")
LOCAL_STARTING_LOG = re.compile(r"starting-(\d+)\.log")
_RANK = re.compile(r"(\d{5,})-(\d{5,})")
_STARTING = re.compile(r"starting-(.+)-(\d+)")
_NODE = re.compile(r"([\w-]+)\.(.+)\.(\d+)")


class Stream(NamedTuple):
    """One log. `attempt` 0: before any, or none of a rank; then `rank` is None, and `node`, `number` (pid, or start in
    Unix milliseconds) say more. `program`: whose it is, "" for a rank's.
    """

    name: str
    attempt: int = 0
    rank: int | None = None
    node: str = ""
    number: int = 0
    program: str = ""


class Segment(NamedTuple):
    """One object of a stream: bytes [start, stop) of the log; `modified` by the store's clock (Unix seconds)."""

    key: str
    start: int
    stop: int
    modified: float


def rank_stream(attempt: int, rank: int) -> Stream:
    """Return the stream of one rank of one attempt."""
    return Stream(f"{attempt:05d}-{rank:05d}", attempt, rank)


def starting_stream(node: str, pid: int) -> Stream:
    """Return the stream of a rank that knows no attempt yet."""
    return Stream(f"starting-{_plain(node)}-{pid}", node=_plain(node), number=pid)


def node_stream(program: str, node: str, start_ms: int) -> Stream:
    """Return the stream of one life of a node's program."""
    return Stream(f"{program}.{_plain(node)}.{start_ms}", node=_plain(node), number=start_ms, program=program)


def _plain(node: str) -> str:
    return re.sub(r"[^\w-]", "_", node)


def parse(name: str) -> Stream | None:
    """Return the stream of a name, None if it is no stream's."""
    if found := _RANK.fullmatch(name):
        return rank_stream(int(found[1]), int(found[2]))
    if found := _STARTING.fullmatch(name):
        return Stream(name, node=found[1], number=int(found[2]))
    if found := _NODE.fullmatch(name):
        return Stream(name, node=found[2], number=int(found[3]), program=found[1])
    return None


def segment_key(runs: RunStore, stream: Stream, start: int) -> str:
    """Return the store key of the stretch of a log that begins at byte `start`."""
    return runs.key(f"{FOLDER}/{stream.name}/{start:015d}")


def segments(runs: RunStore, prefix: str = "") -> Iterator[tuple[Stream, Segment]]:
    """Yield what the store has of the streams whose name starts with `prefix`, each in order."""
    for entry in runs.store.list(runs.key(f"{FOLDER}/{prefix}")):
        name, _, start = entry.key.removeprefix(runs.key(f"{FOLDER}/")).partition("/")
        stream = parse(name)
        if stream and start.isdigit():
            yield stream, Segment(entry.key, int(start), int(start) + entry.bytes_, entry.modified)

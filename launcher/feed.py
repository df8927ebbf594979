"""What the nodes of a run say, read on from where it was left: events, the agents' logs, the ranks' pulses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from cluster import Cluster, ClusterError, Node
from fgtrain import pulse
from launcher.events import Event, decode_events, whole_lines

_FILES = ("events.jsonl", "agent.log")
_TAIL = 2000


class Feed:
    """Reads the nodes' files; a node that cannot be reached just now has nothing to say."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._offsets: dict[tuple[str, str], int | None] = {}

    def skip(self, node: Node) -> None:
        """Pass over what a node has said so far, however much; if it does not answer now, up to when it does."""
        for name in _FILES:
            self._offsets[node.folder, name] = None
            self._offset(node, name)

    def _offset(self, node: Node, name: str) -> int | None:
        """Return from where to read on, None while that is not known."""
        where = (node.folder, name)
        offset = self._offsets.get(where, 0)
        if offset is None:
            with suppress(ClusterError):
                offset = self._offsets[where] = self._cluster.size(node, name)
        return offset

    def events(self, node: Node) -> Iterator[Event]:
        """Yield the events that are new."""
        return decode_events(self._lines(node, "events.jsonl"))

    def agent_lines(self, node: Node) -> list[str]:
        """Return the lines that a node's agent has added to its log."""
        return self._lines(node, "agent.log").decode(errors="replace").splitlines()

    def agent_tail(self, node: Node) -> str:
        """Return the end of an agent's log, where a reason that no worker could report would be."""
        try:
            start = max(0, self._cluster.size(node, "agent.log") - _TAIL)
        except ClusterError:
            return ""
        return self._read(node, "agent.log", start)[-_TAIL:].decode(errors="replace")

    def beats(self, node: Node) -> list[pulse.Beat]:
        """Return the pulses of a node's ranks."""
        return pulse.decode(self._read(node, pulse.FILE, 0))

    def _lines(self, node: Node, name: str) -> bytes:
        offset = self._offset(node, name)
        if offset is None:
            return b""
        whole = whole_lines(self._read(node, name, offset))
        self._offsets[node.folder, name] = offset + len(whole)
        return whole

    def _read(self, node: Node, name: str, offset: int) -> bytes:
        try:
            return self._cluster.read(node, name, offset)
        except ClusterError:
            return b""

"""What the nodes of a run say, read on from where it was left: events, the agents' logs, the ranks' pulses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from cluster import Cluster, ClusterError, Node
from fgtrain import pulse
from launcher.abreast import each
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

    def events(self, nodes: Sequence[Node]) -> Iterator[Event]:
        """Yield the events that are new, node by node."""
        for lines in self._of_each(lambda node: self._lines(node, "events.jsonl"), nodes):
            yield from decode_events(lines)

    def agent_lines(self, nodes: Sequence[Node]) -> list[list[str]]:
        """Return, for each node, the lines that its agent has added to its log."""
        found = self._of_each(lambda node: self._lines(node, "agent.log"), nodes)
        return [lines.decode(errors="replace").splitlines() for lines in found]

    def agent_tails(self, nodes: Sequence[Node]) -> list[str]:
        """Return the end of each agent's log, where a reason that no worker could report would be."""
        return [tail.decode(errors="replace") for tail in self._of_each(self._agent_tail, nodes)]

    def _agent_tail(self, node: Node) -> bytes:
        start = max(0, self._cluster.size(node, "agent.log") - _TAIL)
        return self._cluster.read(node, "agent.log", start)[-_TAIL:]

    def beats(self, nodes: Sequence[Node]) -> list[list[pulse.Beat]]:
        """Return the pulses of each node's ranks."""
        return [pulse.decode(data) for data in self._of_each(lambda node: self._read(node, pulse.FILE, 0), nodes)]

    def _of_each(self, read: Callable[[Node], bytes], nodes: Sequence[Node]) -> list[bytes]:
        return [b"" if isinstance(data, ClusterError) else data for data in each(self._cluster, read, nodes)]

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

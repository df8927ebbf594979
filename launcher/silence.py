"""Nodes that do not answer: told once when they fall silent, and once when they are back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cluster import Cluster, Node

_SILENT_S = 5.0  # before the user is told


class Silence:
    """Remembers who is silent. Their programs may well live: nothing is concluded from it."""

    def __init__(self, cluster: Cluster, note: Callable[[str], None]) -> None:
        self._cluster, self._note = cluster, note
        self._silent: set[str] = set()

    def tell(self, nodes: Iterable[Node]) -> None:
        """Say what has changed."""
        silent = {node.name for node in nodes if self._cluster.silence_s(node) > _SILENT_S}
        for name in sorted(silent ^ self._silent):
            self._note(f"{name} " + ("does not answer: waiting for it" if name in silent else "answers again"))
        self._silent = silent

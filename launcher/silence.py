"""Nodes that do not answer: told of when they fall silent and when they are back, and given up when that lasts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from cluster import Cluster, Node
from launcher.failures import agents_word, tells_of_a_round, tells_of_no_store

_SILENT_S = 5.0  # before the user is told
_START_S = 600.0  # an agent that has not said anything for so long after its start never will


class Silence:
    """Remembers who is silent: to this process, or to the agents of the other nodes.

    Its programs may well live. To be silent here alone is nothing as long as training goes on: it may be this process
    that is cut off. Times are seconds of a clock that never goes back.
    """

    def __init__(self, cluster: Cluster, note: Callable[[str], None], give_up_s: float) -> None:
        """Give a node up after `give_up_s`; 0: never."""
        self._cluster, self._note = cluster, note
        self._give_up_s = give_up_s or math.inf
        self._silent: set[str] = set()
        self._struck: dict[str, float] = {}  # by the agents of other nodes, with when that was heard
        self._begun: dict[str, float] = {}  # agents that have not said anything yet
        self._next: dict[str, float] = {}
        self._cut: set[str] = set()  # whose agents have said that they do not reach the store they meet in

    def tell(self, nodes: Sequence[Node]) -> None:
        """Say what has changed."""
        silent = {node.name for node in nodes if self._cluster.silence_s(node) > _SILENT_S}
        for name in sorted(silent ^ self._silent):
            self._note(f"{name} " + ("does not answer: waiting for it" if name in silent else "answers again"))
        self._silent = silent

    def hear(self, now: float, node: str, line: str) -> None:
        """Take in a line of an agent's log: who says something lives, and who was silent to it may not."""
        if not re.search(r" agent \d+: ", line):
            return
        self.forget(node)
        if tells_of_no_store(line):
            self._cut.add(node)
        elif tells_of_a_round(line):
            self._cut.discard(node)
        if (sign := agents_word(node, 0.0, line)) and sign.kind == "lost" and sign.node != node:
            if now - self._begun.get(sign.node, -_START_S) < _START_S:
                return  # it may be the one before that fell silent
            self._struck.setdefault(sign.node, now)

    def stranded(self, place: Node, others: Sequence[Node], detect_s: float) -> bool:
        """Tell whether a node, with the store that agents meet in, is away for all: us, and all other agents."""
        answering = [n for n in others if n.name not in self._begun and not self._cluster.silence_s(n)]
        away = self._cluster.silence_s(place) >= detect_s
        return away and bool(answering) and all(n.name in self._cut for n in answering)

    def keep_waiting(self, nodes: Sequence[Node], least: int) -> bool:
        """Tell whether fewer than `least` of the nodes are not silent: those only wait for others."""
        return sum(n.name in self._struck or n.name in self._silent for n in nodes) > len(nodes) - least

    def lost(self, now: float, nodes: Sequence[Node], still_s: float) -> list[tuple[Node, float]]:
        """Return the nodes that are to be given up, with for how long they were silent; each again only much later.

        Args:
            now: the time.
            nodes: the run's.
            still_s: for how long no rank that can be seen has moved.
        """
        found = []
        for node in nodes:
            struck_s = now - self._struck.get(node.name, now)
            away_s = min(self._cluster.silence_s(node), still_s)
            silent_s = max(struck_s, away_s)
            if silent_s >= self._give_up_s and now >= self._next.get(node.name, now):
                self._next[node.name] = now + self._give_up_s
                found.append((node, silent_s))
        return found

    def begins(self, now: float, node: str) -> None:
        """A node has a new agent, which may be silent until it has imported what it needs."""
        self._struck.pop(node, None)
        self._cut.discard(node)
        self._begun[node] = now

    def forget(self, node: str) -> None:
        """A node's agent speaks, or there is none any more."""
        self._struck.pop(node, None)
        self._begun.pop(node, None)

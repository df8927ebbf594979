"""The rendezvous store of a run, where its agents meet, and another one that is ready should the first be lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from cluster import Cluster, ClusterError, Command, Node, Process, Rented
from launcher import engine
from launcher.abreast import each

_END_S = 10.0


class _Store(NamedTuple):
    place: Node
    process: Process
    endpoint: str


class Stores:
    """Starts and finds them; whether one is given up is for others to decide."""

    def __init__(
        self,
        cluster: Cluster,
        run: str,
        start: Callable[[Node, Command], Process],
        code: Callable[[Node, Process], int | None],
        abandon: Callable[[Node, Process], None],
    ) -> None:
        """Start nothing yet.

        Args:
            cluster: where.
            run: the run's name.
            start: starts a program on a node.
            code: returns the exit status of one, None while it runs.
            abandon: is told of one that is done without, to be killed, if need be when its node answers again.
        """
        self._cluster, self._run, self._begin, self._code, self._abandon = cluster, run, start, code, abandon
        self._store: _Store | None = None
        self._spare: _Store | None = None
        self.place: Node | None = None
        """Where agents meet, or did last."""
        self.endpoint = ""
        """The same as HOST:PORT."""

    def start(self, nodes: Sequence[Node], living: Collection[str], port: int | None) -> None:
        """Have a store: the one that is ready, or another, on the first node that can have it, or one for it alone.

        Nodes that answer come first, of those the ones whose agents live.

        Raises:
            ClusterError: none can.
        """
        spare = self._good_spare()
        self._spare = None
        self._meet_in(spare or self._start(self._order(nodes, living), port))

    def _good_spare(self) -> _Store | None:
        spare = self._spare
        if spare and (self._cluster.silence_s(spare.place) or not self._lives(spare)):
            self._abandon(spare.place, spare.process)
            self._spare = None
        return self._spare

    def _meet_in(self, store: _Store) -> None:
        self._store, self.place, self.endpoint = store, store.place, store.endpoint

    def _order(self, nodes: Sequence[Node], living: Collection[str]) -> list[Node]:
        places, silence_s = meeting_places(self._cluster, self._run, nodes), self._cluster.silence_s
        apart = [n for n in places if n not in nodes]
        return sorted(places, key=lambda n: (silence_s(n) > 0, n not in apart, n.name not in living, n == self.place))

    def _start(self, places: Sequence[Node], port: int | None) -> _Store:
        refused: ClusterError | None = None
        for node in places:
            try:
                taken = port or self._cluster.free_port(node)
                return _Store(node, self._begin(node, rendezvous_command(node, taken)), f"{node.address}:{taken}")
            except ClusterError as error:
                refused = error
        assert refused is not None
        raise refused

    def keep_spare(self, nodes: Sequence[Node], living: Collection[str], port: int | None) -> None:
        """Have another store ready, on a node that would not be lost together with the first, if there is one.

        Only when all agents live and their nodes answer. Not where nodes are one machine, or are lost together.
        """
        together = not self._cluster.lasting or isinstance(self._cluster, Rented)
        others = [n for n in nodes if self.place and n.address != self.place.address]
        troubled = len(living) < len(nodes) or any(map(self._cluster.silence_s, nodes))
        if together or not others or troubled or not self.live() or self._good_spare():
            return
        with suppress(ClusterError):
            self._spare = self._start(others, port)

    def leave_spare(self, node: Node) -> None:
        """Do without the one that is ready on a node, if it is there."""
        if self._spare and self._spare.place == node:
            self._abandon(node, self._spare.process)
            self._spare = None

    def live(self) -> bool:
        """Tell whether the store lives."""
        return self._store is not None and self._lives(self._store)

    def _lives(self, store: _Store) -> bool:
        return self._code(store.place, store.process) is None

    def leave(self) -> None:
        """Do without the store."""
        if self._store:
            self._abandon(self._store.place, self._store.process)
            self._store = None

    def drop(self) -> list[Process]:
        """Do without any; returns what is to be killed."""
        dropped = [s.process for s in (self._store, self._spare) if s]
        self._store = self._spare = None
        return dropped

    def adopt(self, endpoint: str, nodes: Sequence[Node]) -> bool:
        """Take over the store that an earlier supervisor has started; False: it does not live."""
        places, host = meeting_places(self._cluster, self._run, nodes), endpoint.rpartition(":")[0]
        here = [n for n in places if n.address == host]
        for node, process in zip(here, find_each(self._cluster, here, "rendezvous"), strict=True):
            if process:
                self._meet_in(_Store(node, process, endpoint))
        # The one that was ready: nobody knows its port.
        each(self._cluster, lambda n: kill_all(self._cluster, n, "rendezvous"), [n for n in places if n not in here])
        return self._store is not None


def meeting_places(cluster: Cluster, run: str, nodes: Sequence[Node]) -> list[Node]:
    """Return where a run's agents may meet: on a node that is there for nothing else, if there is one, or on any."""
    apart = cluster.rendezvous_node(run)
    return [*([apart] if apart else []), *nodes]


def kill_all(cluster: Cluster, node: Node, name: str) -> None:
    """Kill all that runs on a node under a name; what cannot be killed, or reached, is passed over."""
    with suppress(ClusterError):
        while process := cluster.find(node, name):
            process.kill()
            if process.wait(_END_S) is None:
                break


def find_each(cluster: Cluster, nodes: Sequence[Node], name: str) -> list[Process | None]:
    """Return what runs on each node under a name; None if nothing does, or the node does not answer."""
    found = each(cluster, lambda node: cluster.find(node, name), nodes)
    return [None if isinstance(process, ClusterError) else process for process in found]


def rendezvous_command(node: Node, port: int | str) -> Command:
    """Return what to start on the first node, for the agents to meet in."""
    return Command("rendezvous", engine.rendezvous_argv(node.python, port), {})

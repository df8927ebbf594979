"""Who hangs, who is slow, who is silent: looked at once a second; ranks that hang are killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster import Cluster, Node
from fgtrain.plan import World
from fgtrain.pulse import Beat
from launcher.clock import Clock
from launcher.failures import Sign
from launcher.feed import Feed
from launcher.fleet import Fleet
from launcher.silence import Silence
from launcher.supervision import Supervision
from launcher.watchdog import Watchdog


class Guard:
    """Watches the ranks and nodes of one run."""

    def __init__(
        self,
        settings: Supervision,
        cluster: Cluster,
        fleet: Fleet,
        feed: Feed,
        world: World,
        clock: Clock,
        note: Callable[[str], None],
    ) -> None:
        self._fleet, self._feed, self._world, self._clock, self._note = fleet, feed, world, clock, note
        self._watchdog = Watchdog(settings.watchdog, settings.straggler)
        self._silence = Silence(cluster, note, settings.silent_s)
        self._waited = False
        self.beats: dict[str, Sequence[Beat]] = {}
        """What each node's pulse said when last looked at, by its name; none where it could not be read."""

    def look(self) -> Sign | None:
        """Look for ranks that hang or are slow; those that hang are killed, and their agents start them again."""
        now = self._clock.now()
        nodes = self._fleet.nodes
        self._silence.tell(nodes)
        self.beats = dict(zip((n.name for n in nodes), self._feed.beats(nodes), strict=True))
        for note in self._watchdog.observe(now, self.beats):
            self._note(note)
        if self._silence.keep_waiting([s.node for s in self._fleet.seats if s.agent], self._world.nodes):
            self._waited = True
            return None
        if self._waited:  # what was seen before says nothing any more
            self._waited = False
            self._watchdog.acted(now)
        return self._unhang(now)

    def _unhang(self, now: float) -> Sign | None:
        hung = self._watchdog.hung(now)
        if not hung:
            return None
        self._watchdog.acted(now)
        slots: dict[str, list[int]] = {}
        for at in hung.ranks:
            slots.setdefault(at.node, []).append(at.slot)
        self._note(f"{hung.text}; stacks are in the ranks' logs")
        for error in self._fleet.unhang(slots):
            self._note(str(error))
        at = hung.ranks[0]
        return Sign("hang", hung.text, self._clock.time(), node=at.node, rank=at.rank)

    def hear(self, node: Node, line: str) -> None:
        """Take in a line of an agent's log."""
        self._silence.hear(self._clock.now(), node.name, line)

    def stranded(self, place: Node) -> bool:
        """Tell whether agents lack the store on a node that nobody reaches any more."""
        others = [s.node for s in self._fleet.seats if s.agent and s.node != place]
        return self._silence.stranded(place, others, self._world.detect_s)

    def lost(self) -> list[tuple[Node, float]]:
        """Return the nodes that are to be given up, with for how many seconds they were silent."""
        now = self._clock.now()
        return self._silence.lost(now, self._fleet.nodes, self._watchdog.still_s(now))

    def forget(self, node: Node) -> None:
        """A node has been given up."""
        self._silence.forget(node.name)

    def begins(self, node: Node) -> None:
        """A node has a new agent."""
        self._silence.begins(self._clock.now(), node.name)

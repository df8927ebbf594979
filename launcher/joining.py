"""Nodes that were missing when a run began, or were taken out: whoever is there later takes part.

The run goes on well without them, so none of them may end it. Until a node has taken a step it is on probation: what it
causes is its own affair, costs the run none of its tries, and the node is done without again, for a while.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from cluster import ClusterError, Node, Rented, Versioned
from fgtrain.errors import Corrupt, FglaunchError, StoreError
from fgtrain.pulse import Phase
from launcher import exclusions, precheck, replacing
from launcher.abreast import aside
from launcher.failures import Sign
from launcher.feed import Feed
from launcher.fleet import Fleet, Seat, seat_count
from launcher.guard import Guard
from launcher.incidents import Incidents

ASK_AGAIN_S = 30.0
_LEAST_S, _MOST_S = 60.0, 3600.0  # how long a node is left alone that could not take part: twice as long each time
_AT_WORK = (Phase.STEP, Phase.EVALUATE, Phase.FINISH, Phase.DONE)


class _Found(NamedTuple):
    """What came of a search: a node, what its check says against it, and why other nodes cannot be had, by name."""

    node: Node | None
    problems: Sequence[str]
    refused: dict[str, str]


class _Away(NamedTuple):
    until: float
    delay_s: float
    why: str


class Joining:
    """Looks for nodes for the seats that a run lacks, beside all else: making a node ready may take minutes."""

    def __init__(self, site: replacing.Site, fleet: Fleet, feed: Feed, incidents: Incidents, guard: Guard) -> None:
        """Look for nothing yet."""
        self._fleet, self._feed, self._incidents, self._guard = fleet, feed, incidents, guard
        self._over = False
        self._site = site._replace(interrupted=lambda: self._over or site.interrupted())
        self._search: Future[_Found] | None = None
        self._next = 0.0
        self._away: dict[str, _Away] = {}

    def stop(self) -> None:
        """Look no more; a search that is under way ends as soon as it can."""
        self._over = True

    def look(self, now: float) -> None:
        """Give a seat to a node that was found, and look for the next if seats are missing."""
        if self._search and self._search.done():
            search, self._search = self._search, None
            self._take(search, now)
        lacks = len(self._fleet.seats) < seat_count(self._site.world)
        if lacks and self._search is None and now >= self._next and not isinstance(self._site.cluster, Rented):
            self._next = now + ASK_AGAIN_S
            taken, endpoint = self._fleet.nodes, self._fleet.stores.endpoint
            away = {name: one.why for name, one in self._away.items() if one.until > now}
            self._search = aside(self._site.cluster, lambda: self._find(taken, endpoint, away))

    def uncounted(self) -> tuple[set[str], set[str]]:
        """Return the nodes that are not counted on, and those of them that take part for the first time just now."""
        self._admit()
        on_probation = {s.node.name: s.probation for s in self._fleet.seats if s.probation is not None}
        tried = {name for name, attempt in on_probation.items() if self._incidents.newest > attempt}
        return on_probation.keys() | self._fleet.former, tried

    def dismiss(self, cause: Sign, names: Collection[str], now: float) -> None:
        """Do without nodes that are on probation, and leave them alone for a while, or for good if one is broken."""
        for seat in [s for s in self._fleet.seats if s.node.name in names]:
            self._fleet.unseat(seat)
            if cause.kind == "hardware":
                replacing.exclude(self._site, seat.node, cause.message)
            else:
                self._leave_alone(seat.node.name, f"{cause.kind}: {cause.message}", now)

    def _admit(self) -> None:
        """Count on nodes that have taken a step, and on as many as are needed."""
        lacking = self._site.world.nodes - sum(seat.probation is None for seat in self._fleet.seats)
        for seat in self._fleet.seats:
            if seat.probation is None:
                continue
            beats = [b for b in self._guard.beats.get(seat.node.name, ()) if b.attempt > seat.probation]
            if lacking > 0 or any(b.phase in _AT_WORK and b.step > b.first for b in beats):
                seat.probation = None
                lacking -= 1
                self._away.pop(seat.node.name, None)

    # -- searching, beside all else -------------------------------------------------------------------------------

    def _find(self, taken: Sequence[Node], endpoint: str, refused: dict[str, str]) -> _Found:
        known = set(refused)
        others = [n for n in taken if not self._site.cluster.silence_s(n)]  # one of which it is to be like
        if not others:
            return _Found(None, (), {})
        node = replacing.spare(self._site, taken, refused)
        problems: Sequence[str] = ()
        if node:
            try:
                self._compare(node, others[0])
                problems = self._check(node, endpoint)
            except (ClusterError, FglaunchError) as error:
                refused[node.name], node = str(error), None
        return _Found(node, problems, {name: why for name, why in refused.items() if name not in known})

    def _compare(self, node: Node, other: Node) -> None:
        """Refuse a node that is not like another one.

        Raises:
            UserError, ClusterError
        """
        cluster = self._site.cluster
        precheck.check_hardware([other, node], cluster, self._site.world)
        if isinstance(cluster, Versioned) and cluster.version(node) != cluster.version(other):
            raise ClusterError(
                "the code or the environment here has changed since the run was started:"
                f" {node.name} takes part after `fglaunch stop` and `fglaunch resume`"
            )

    def _check(self, node: Node, endpoint: str) -> Sequence[str]:
        """Return what is wrong with a node.

        Raises:
            ClusterError: it gave no answer.
        """
        seen = replacing.examined(self._site, [node], endpoint)
        if not seen:
            return ()
        if seen[node.name].report is None:
            raise ClusterError(seen[node.name].trouble)
        return precheck.judge(seen, self._site.check, self._site.world.gpus, [node.name]).get(node.name, ())

    # -- what comes of it -----------------------------------------------------------------------------------------

    def _take(self, search: Future[_Found], now: float) -> None:
        if error := search.exception():
            self._site.note(f"looking for more nodes: {error}")
            return
        found = search.result()
        for name, why in found.refused.items():
            self._leave_alone(name, why, now)
        node = found.node
        if node is None or self._fleet.seat(node.name):  # it has taken another's place meanwhile
            return
        if found.problems:
            replacing.exclude(self._site, node, "; ".join(found.problems))
        elif not self._excluded(node):
            self._seat(node, now)

    def _excluded(self, node: Node) -> bool:
        try:
            return node.name in exclusions.excluded_names(self._site.runs, self._site.name)
        except (StoreError, Corrupt):  # the next search tells
            return True

    def _seat(self, node: Node, now: float) -> None:
        self._site.note(f"{node.name} is there now, and takes part")
        self._feed.skip(node)
        self._fleet.seats.append(Seat(node, due=now, probation=self._incidents.newest))
        self._next = now  # there may be more

    def _leave_alone(self, name: str, why: str, now: float) -> None:
        before = self._away.get(name)
        delay_s = min(_MOST_S, 2 * before.delay_s) if before else _LEAST_S
        self._away[name] = _Away(now + delay_s, delay_s, why)
        if before is None or before.why != why:
            self._site.note(f"{name} cannot take part: {why}; it is asked again, in {delay_s:.0f} s at first")

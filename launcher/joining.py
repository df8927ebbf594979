"""Nodes that were missing when a run began, or were taken out: whoever is there later takes part."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from cluster import Node, Rented
from fgtrain.errors import StoreError
from launcher import replacing
from launcher.abreast import aside
from launcher.feed import Feed
from launcher.fleet import Fleet, Seat, seat_count

ASK_AGAIN_S = 30.0


class _Found(NamedTuple):
    node: Node
    problems: Sequence[str]


class Joining:
    """Looks for nodes for the seats that a run lacks, beside all else: making a node ready may take minutes."""

    def __init__(self, site: replacing.Site, fleet: Fleet, feed: Feed) -> None:
        """Look for nothing yet."""
        self._site, self._fleet, self._feed = site, fleet, feed
        self._search: Future[_Found | None] | None = None
        self._next = 0.0

    def look(self, now: float) -> None:
        """Give a seat to a node that was found, and look for the next, if seats are missing."""
        if self._search and self._search.done():
            found, self._search = self._search.result(), None
            if found:
                self._seat(found, now)
        lacks = len(self._fleet.seats) < seat_count(self._site.world)
        if lacks and self._search is None and now >= self._next and not isinstance(self._site.cluster, Rented):
            self._next = now + ASK_AGAIN_S
            taken, endpoint = self._fleet.nodes, self._fleet.stores.endpoint
            self._search = aside(self._site.cluster, lambda: self._find(taken, endpoint))

    def _find(self, taken: Sequence[Node], endpoint: str) -> _Found | None:
        with suppress(StoreError):  # it does not say who is excluded: later, then
            if node := replacing.spare(self._site, taken):
                return _Found(node, replacing.problems(self._site, [node], endpoint).get(node.name, ()))
        return None

    def _seat(self, found: _Found, now: float) -> None:
        node = found.node
        if self._fleet.seat(node.name):  # it has taken another's place meanwhile
            return
        if found.problems:
            replacing.exclude(self._site, node, "; ".join(found.problems))
            return
        self._site.note(f"{node.name} is there now, and takes part")
        self._fleet.seats.append(Seat(node, due=now))
        self._feed.skip(node)
        self._next = now  # there may be more

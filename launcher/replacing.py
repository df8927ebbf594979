"""Choosing nodes: checked at the start, and later for one that cannot be used any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cluster import Cluster, ClusterError, Node, Owner, Rented
from fgtrain.errors import Corrupt, StoreError
from fgtrain.plan import World
from fgtrain.runstore import RunStore
from launcher import exclusions, precheck
from launcher.clock import Clock
from launcher.failures import Sign
from launcher.feed import Feed
from launcher.fleet import Fleet, Seat, devices_of, seat_count
from launcher.furnishing import all_ready, furnish
from launcher.supervision import Check


class Site(NamedTuple):
    """Where a run is: its cluster, by object and by name, whose folders there are, its corner of the store, its world.

    Then how nodes are checked, and what that needs.
    """

    cluster: Cluster
    name: str
    owner: Owner
    runs: RunStore
    world: World
    check: Check
    clock: Clock
    interrupted: Callable[[], bool]
    note: Callable[[str], None]


def choose(site: Site) -> list[Node]:
    """Return nodes for a run, none of them excluded, each with its working folder: as many as there are.

    Raises:
        ClusterError: there are fewer than the run needs.
    """
    excluded = exclusions.excluded_names(site.runs, site.name)
    nodes = furnish(site.cluster, site.owner, site.world, excluded, site.note)
    if len(nodes) < (wished := seat_count(site.world)):
        without = f", but for {', '.join(sorted(excluded))}: see `fglaunch nodes`" if excluded else ""
        site.note(f"begins on {len(nodes)} of {wished} nodes: others are taken in when they are there{without}")
    return nodes


def spare(site: Site, taken: Sequence[Node], refused: dict[str, str] | None = None) -> Node | None:
    """Return a node, made ready, that is neither excluded nor taken; None if there is none.

    On `local` another node would be the same machine.

    Args:
        site: where.
        taken: nodes that are used already.
        refused: why nodes cannot be had, by name. They are not tried; others that cannot be had are added.
    """
    if site.cluster.name == "local":
        return None
    refused = {} if refused is None else refused
    try:
        excluded = exclusions.excluded_names(site.runs, site.name) | {n.name for n in taken}
    except (StoreError, Corrupt) as error:
        site.note(f"no other node is looked for: who is excluded cannot be read: {error}")
        return None
    while not site.interrupted():
        try:
            [node] = exclusions.pick(site.cluster, site.runs.run, 1, excluded | refused.keys())
        except ClusterError:
            return None
        try:
            all_ready(site.cluster, [node], site.owner)
        except ClusterError as error:
            refused[node.name] = str(error)
            if isinstance(site.cluster, Rented):  # yet another one would be rented
                return None
            continue
        return node
    return None


def settle(site: Site, seats: list[Seat], endpoint: str) -> None:
    """Check the nodes of all seats; one that fails is excluded and another takes its seat, and is checked.

    Where there is no other, the seat is taken away, if the run can do without.

    Raises:
        ClusterError: a node is broken, and it is needed.
    """
    unchecked = list(seats)
    while unchecked and not site.interrupted():
        bad = problems(site, [s.node for s in unchecked], endpoint)
        unchecked = [s for s in unchecked if s.node.name in bad]
        for seat in unchecked:
            reason = "; ".join(bad[seat.node.name])
            exclude(site, seat.node, reason)
            if other := spare(site, [s.node for s in seats]):
                seat.node = other
            elif dispensable(site, seats):
                seats.remove(seat)
            else:
                raise ClusterError(f"{seat.node.name} failed its check: {reason}; there is no other node")
        unchecked = [s for s in unchecked if s in seats]


def dispensable(site: Site, seats: Sequence[Seat]) -> bool:
    """Tell whether a run can do with a node less.

    The nodes of `local` are one machine, and those that are rented are paid for together.
    """
    lone = site.cluster.name != "local" and not isinstance(site.cluster, Rented)
    return lone and len(seats) > site.world.nodes


def problems(site: Site, nodes: Sequence[Node], endpoint: str) -> Mapping[str, list[str]]:
    """Return what is wrong with nodes, by name; nothing for those that are well."""
    seen = examined(site, nodes, endpoint)
    return precheck.judge(seen, site.check, site.world.gpus, [n.name for n in nodes]) if seen else {}


def examined(site: Site, nodes: Sequence[Node], endpoint: str) -> Mapping[str, precheck.Seen]:
    """Return what a check of nodes has seen, by name; nothing if none is wanted, or it was interrupted."""
    if site.check.level == "off":
        return {}
    devices = devices_of(site.world, site.cluster.hardware(nodes)[0]) if site.cluster.name == "local" else None
    env = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    seen = precheck.examine(site.cluster, nodes, endpoint, site.check, site.clock, site.interrupted, env)
    return {} if site.interrupted() else seen


def exclude(site: Site, node: Node, reason: str) -> None:
    """Use a node no more. The nodes of `local` are one machine, which is not given up for ever."""
    if site.cluster.name == "local":
        return
    try:
        exclusions.exclude(site.runs, site.name, site.cluster, node, reason)
    except StoreError as error:
        site.note(f"the run's list of nodes that are not used cannot be written: {error}")
    site.note(f"{node.name} is not used any more: {reason}; `fglaunch nodes` lists such nodes")


class Places:
    """Who sits where: nodes that are broken, that cannot be started on, or are silent for good give way to others."""

    def __init__(self, site: Site, fleet: Fleet, feed: Feed, tries: int) -> None:
        """A node on which starting has failed `tries` times in a row is replaced."""
        self._site, self._fleet, self._feed, self._tries = site, fleet, feed, tries

    def exclude(self, cause: Sign, *, for_good: bool) -> None:
        """Take a broken node out, if there is another, or the run can do with a node less.

        If not, it is tried on until the run is given up `for_good`.
        """
        seat = self._fleet.seat(cause.node)
        if seat is None:
            return
        other, spared = spare(self._site, self._fleet.nodes), dispensable(self._site, self._fleet.seats)
        if not (other or spared or for_good):
            return
        exclude(self._site, seat.node, cause.message)
        if other:
            self._fleet.end_agents([seat])
            self._move(seat, other)
        elif spared:
            self._fleet.unseat(seat)

    def replace_failing(self, seat: Seat) -> None:
        """Put another node in the place of one on which starting keeps failing, if there is one.

        Not of one that is on probation: whoever joins then is as new.
        """
        if seat.failures >= self._tries and seat.probation is None and (other := spare(self._site, self._fleet.nodes)):
            self._move(seat, other)

    def give_up(self, seat: Seat) -> bool:
        """Do without the agent of a node that is silent; False, and nothing changes, if no node could take over.

        A node that answers, whose agent does not, is tried again itself, but not for ever; one on probation is not.
        """
        if seat.probation is not None:
            self._fleet.unseat(seat)
            return True
        answers = not self._site.cluster.silence_s(seat.node)
        other = None if answers else spare(self._site, self._fleet.nodes)
        if not answers and other is None:
            return False
        self._fleet.abandon(seat)
        seat.failures += 1
        if other:
            self._move(seat, other)
        else:
            self.replace_failing(seat)
        return True

    def _move(self, seat: Seat, other: Node) -> None:
        self._site.note(f"{other.name} takes the place of {seat.node.name}")
        seat.node, seat.failures = other, 0
        self._feed.skip(other)

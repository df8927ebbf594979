"""Making nodes a run's own, and ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster import Cluster, ClusterError, Node, Occupied, Owner, Rented
from fgtrain.plan import World
from launcher import exclusions
from launcher.abreast import tried
from launcher.fleet import seat_count
from launcher.stores import meeting_places

_AT_ONCE = 16


def furnish(
    cluster: Cluster,
    owner: Owner,
    world: World,
    excluded: set[str],
    note: Callable[[str], None] = lambda text: None,
) -> list[Node]:
    """Return nodes that a run begins on, ready, none of them excluded: as many as are to be had.

    Args:
        cluster: theirs.
        owner: the run.
        world: how many it wishes for, and needs.
        excluded: names of nodes that are not used.
        note: is told of those that cannot be made ready.

    Raises:
        Occupied: another run of its name is at work on one; none was made ready.
        ClusterError: there are fewer than the run needs.
    """
    all_ready(cluster, meeting_places(cluster, owner.run, []), owner)
    refused: dict[str, ClusterError] = {}
    while True:
        try:
            out = excluded | refused.keys()
            nodes = exclusions.pick(cluster, owner.run, seat_count(world), out, least=world.nodes)
        except ClusterError:
            if refused:
                raise next(iter(refused.values())) from None
            raise
        bad = _refusals(cluster, nodes, owner)
        if not bad:
            return nodes
        if cluster.name == "local":  # another one would be the same machine
            raise next(iter(bad.values()))
        for name, error in bad.items():
            note(f"{name} is done without: {error}")
        refused |= bad


def all_ready(cluster: Cluster, nodes: Sequence[Node], owner: Owner) -> None:
    """Make nodes a run's own, and ready, several at once: an environment takes a machine minutes to make.

    Raises:
        Occupied: another run of its name is at work on one; none was made ready.
        ClusterError: one cannot be.
    """
    for error in _refusals(cluster, nodes, owner).values():
        raise error


def _refusals(cluster: Cluster, nodes: Sequence[Node], owner: Owner) -> dict[str, ClusterError]:
    """Do as `all_ready` does; returns why some of them cannot be had, by name.

    Raises:
        Occupied: another run of its name is at work on one; none was made ready.
        ClusterError: they are rented, and cannot be had.
    """
    all_ = list(dict.fromkeys(nodes))
    if all_ and isinstance(cluster, Rented):
        _rented_ready(cluster, all_, owner)
        return {}
    refused = dict(_refused(lambda node: cluster.claim(node, owner), all_))
    if occupied := next((e for e in refused.values() if isinstance(e, Occupied)), None):
        raise occupied
    return refused | dict(_refused(cluster.make_ready, [n for n in all_ if n.name not in refused]))


def _refused(do: Callable[[Node], None], nodes: Sequence[Node]) -> Iterator[tuple[str, ClusterError]]:
    """Do something on nodes, several at once; yields the names of those that refuse, and why."""
    if len(nodes) == 1:  # without a thread, which a process would wait for when it ends
        said = [tried(do)(nodes[0])]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            said = list(pool.map(tried(do), nodes))
    yield from ((node.name, error) for node, error in zip(nodes, said, strict=True) if error)


def _rented_ready(cluster: Cluster, nodes: Sequence[Node], owner: Owner) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda node: cluster.claim(node, owner), nodes))
        cluster.make_ready(nodes[0])  # it has all rented, and should that fail, no other is to try again
        list(pool.map(cluster.make_ready, nodes[1:]))
        list(pool.map(lambda node: cluster.claim(node, owner), nodes))  # they had no folders before

"""Making nodes a run's own, and ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster import Cluster, ClusterError, Node, Occupied, Owner, Rented

_AT_ONCE = 16


def all_ready(
    cluster: Cluster,
    nodes: Sequence[Node],
    owner: Owner,
    *,
    least: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Node]:
    """Make nodes a run's own, and ready, several at once: an environment takes a machine minutes to make.

    Args:
        cluster: theirs.
        nodes: which.
        owner: the run.
        least: how many will do, where they are not rented; the others are told of, and done without. None: all.
        note: is told.

    Returns:
        Those that are ready.

    Raises:
        Occupied: another run of its name is at work on one; none was made ready.
        ClusterError: one cannot be, and is needed.
    """
    all_ = list(dict.fromkeys(nodes))
    if all_ and isinstance(cluster, Rented):
        _rented_ready(cluster, all_, owner)
        return all_
    refused = dict(_refused(lambda node: cluster.claim(node, owner), all_))
    if occupied := next((e for e in refused.values() if isinstance(e, Occupied)), None):
        raise occupied
    refused |= _refused(cluster.make_ready, [n for n in all_ if n not in refused])
    if refused and len(all_) - len(refused) < (len(all_) if least is None else least):
        raise next(iter(refused.values()))
    for node, error in refused.items():
        note(f"{node.name} is done without: {error}")
    return [n for n in all_ if n not in refused]


def _refused(do: Callable[[Node], None], nodes: Sequence[Node]) -> Iterator[tuple[Node, ClusterError]]:
    """Do something on nodes, several at once; yields those that refuse, and why."""

    def tried(node: Node) -> ClusterError | None:
        try:
            do(node)
        except ClusterError as error:
            return error
        return None

    if len(nodes) == 1:  # without a thread, which a process would wait for when it ends
        said = [tried(nodes[0])]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            said = list(pool.map(tried, nodes))
    yield from ((node, error) for node, error in zip(nodes, said, strict=True) if error)


def _rented_ready(cluster: Cluster, nodes: Sequence[Node], owner: Owner) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda node: cluster.claim(node, owner), nodes))
        cluster.make_ready(nodes[0])  # it has all rented, and should that fail, no other is to try again
        list(pool.map(cluster.make_ready, nodes[1:]))
        list(pool.map(lambda node: cluster.claim(node, owner), nodes))  # they had no folders before

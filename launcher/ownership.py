"""Whose working folders are: a run takes them before it starts anything there, and leaves those of others alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cluster import Cluster, ClusterError, Node, Occupied, Owner, Queue
from cluster import _host_claims as claims
from fgtrain.runstore import RunFile
from launcher.abreast import each


def owner_of(run: RunFile, store_url: str) -> Owner:
    """Return what folders are told of a run."""
    return Owner(run.identity, run.name, store_url, early=not run.id)


def still_own(cluster: Cluster, nodes: Sequence[Node], owner: Owner) -> list[Node]:
    """Return those of a run's earlier nodes whose folders no other run of its name has taken since.

    One that cannot be read is among them: nothing can be found or killed there either.
    """
    signed = each(cluster, partial(_signed, cluster), nodes)
    return [node for node, name in zip(nodes, signed, strict=True) if name in (None, owner.id)]


def refuse_beside(queue: Queue, owner: Owner) -> None:
    """Refuse to queue a job while that of another run of this name is at work, where its folders are seen from here.

    What neither this sees nor its nodes' folders have been told yet, they will say when the job begins.

    Raises:
        Occupied: it is.
        ClusterError: the queue does not answer.
    """
    for file in sorted(queue.log(owner.run, "0").parent.glob(f"*/{claims.FILE}")):
        found = claims.read(str(file.parent))
        if found.get("id") == owner.id or "job" not in found:
            continue
        state = queue.look(str(found["job"]))
        if state and not state.waits:
            raise Occupied(claims.refusal(f"job {found['job']}", found))


def _signed(cluster: Cluster, node: Node) -> str | None:
    try:
        found = claims.parse(cluster.read(node, claims.FILE, 0)).get("id")
    except ClusterError:
        return None
    return None if found is None else str(found)

"""What goes on of a run without a supervisor, where the run is to stop or on a cluster that it leaves: it is ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cluster import Cluster, ClusterError, Node, Owner, Process, Rented
from fgtrain.errors import UserError
from fgtrain.runstore import RunFile
from launcher.abreast import each
from launcher.clusters import find_cluster
from launcher.foreground import give_back, say
from launcher.ownership import still_own
from launcher.stores import kill_all, meeting_places
from launcher.takeover import Term

_LAST_SNAPSHOT_S = 30.0


def leave(run: RunFile, owner: Owner, term: Term, *, lost: bool) -> None:
    """Leave nothing of a run on the cluster of its last supervisor: the run goes on on another one.

    If that one was `lost`, agents may go on, and are asked for a last snapshot. Rented machines are given back. What
    cannot be done from here is told, and is no obstacle: what that supervisor has started has a lease, which ends with
    the first heartbeat of the next one.
    """
    try:
        cluster = find_cluster(term.cluster, Path(run.cwd))
        if isinstance(cluster, Rented) and cluster.held(run.name):
            for node in term.nodes:  # they may be another run's of its name by now
                cluster.claim(node, owner)
        problem = _end_lost(cluster, owner, term) if lost else ""
        give_back(run.name, cluster)
    except (ClusterError, UserError) as error:
        problem = f"which cannot be asked from here ({error})" if lost else ""
    if problem:
        say(f"note: {run.name} leaves {term.cluster}, {problem}; what still runs there leaves when it finds out")


def _end_lost(cluster: Cluster, owner: Owner, term: Term) -> str:
    """End what goes on without its supervisor; returns what could not be done."""
    if not cluster.lasting:
        return ""
    if isinstance(cluster, Rented) and cluster.held(owner.run) is None:
        return "where it may have machines that were not rented from here"
    silent = end(cluster, owner, term.places)
    return f"whose {', '.join(silent)} cannot be reached from here" if silent else ""


def end(cluster: Cluster, owner: Owner, nodes: Sequence[Node], last_s: float = _LAST_SNAPSHOT_S) -> list[str]:
    """Ask a run's agents to leave, which takes a last snapshot, and kill what is left of it after `last_s` seconds.

    Returns:
        The nodes that were not reached, or refused.
    """
    nodes = still_own(cluster, nodes, owner)
    asked = dict(zip(nodes, each(cluster, partial(_ask, cluster), nodes), strict=True))
    reached = [node for node, agent in asked.items() if not isinstance(agent, ClusterError)]
    leaving = [agent for agent in asked.values() if agent and not isinstance(agent, ClusterError)]
    deadline = time.monotonic() + last_s
    each(cluster, lambda agent: agent.wait(max(0.0, deadline - time.monotonic())), leaving)
    each(cluster, partial(kill_all, cluster, name="agent"), reached)
    with suppress(ClusterError):  # the place apart does not answer: what is there leaves by itself
        reached = still_own(cluster, meeting_places(cluster, owner.run, reached), owner)
    each(cluster, partial(kill_all, cluster, name="rendezvous"), reached)
    return [node.name for node, agent in asked.items() if isinstance(agent, ClusterError)]


def _ask(cluster: Cluster, node: Node) -> Process | None:
    """Ask a node's agent to leave; returns it, None if there is none."""
    if agent := cluster.find(node, "agent"):
        agent.terminate()
    return agent

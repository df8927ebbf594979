"""Nodes that are not used any more, since they were found broken: by a run (in its store), and by this user's runs.

The user's list is a folder of small files among the working folders, one a node: it lasts until somebody lifts it with
`fglaunch nodes --lift NODE`. A job notes what it finds where its working folders are, in the `work` of its cluster, and
the machine that submits looks there too. A run's own list travels with the run, to whichever machine goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from cluster import Cluster, ClusterError, Fewer, Node
from fgtrain.errors import Corrupt, KeyMissing, UserError
from fgtrain.runstore import RunStore
from launcher.clusters import entries, read_config, work_root


class TooFew(ClusterError):
    """There would be nodes enough if none were excluded."""


class Exclusion(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is not used, why, since when (Unix seconds), and which run found out."""

    cluster: str
    node: str
    reason: str
    time: float
    run: str


def state_folder() -> Path:
    """Return where what is found here is noted; no run has such a name."""
    return work_root() / ".excluded"


def state_folders() -> list[Path]:
    """Return all places where this user's exclusions may be: this machine's, and those of jobs that ran elsewhere."""
    works: list[Path] = []
    with suppress(UserError):  # a supervisor, which asks as well, needs no clusters.toml
        named = [str(entry.get("work", "")) for entry in entries(read_config()).values()]
        works = [Path(os.path.expanduser(work)) for work in named]  # noqa: PTH111  (of an unknown user: no error)
    earlier = work_root().parent / "excluded"
    return list(dict.fromkeys([state_folder(), *(w / ".excluded" for w in works if w.is_absolute()), earlier]))


def exclude(runs: RunStore, cluster_name: str, cluster: Cluster, node: Node, reason: str) -> Exclusion:
    """Note that a node is broken: for the run, and for later runs too where nodes are machines.

    The nodes of `local` are only folders of this machine, and their names say nothing of it. Where later runs' list
    cannot be written, the run's own has to do.
    """
    found = Exclusion(cluster=cluster_name, node=node.name, reason=reason, time=time.time(), run=runs.run)
    runs.write(_run_key(node.name), found)
    if cluster.name != "local":
        file = state_folder() / quote(cluster_name, safe="") / f"{quote(node.name, safe='')}.json"
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(found))
            part.replace(file)
    return found


def of_user(cluster_name: str | None = None) -> Iterator[Exclusion]:
    """Yield this user's exclusions, of one cluster or all; a file that cannot be read is passed over."""
    for _, found in _files(cluster_name):
        yield found


def _files(cluster_name: str | None) -> Iterator[tuple[Path, Exclusion]]:
    for folder in state_folders():
        with suppress(OSError):  # it may be another user's
            for file in sorted(folder.glob("*/*.json")):
                with suppress(OSError, msgspec.DecodeError):
                    found = msgspec.json.decode(file.read_bytes(), type=Exclusion)
                    if cluster_name in (None, found.cluster):
                        yield file, found


def of_run(runs: RunStore) -> list[Exclusion]:
    """Return a run's own exclusions.

    Raises:
        Corrupt: one cannot be read.
    """
    return runs.read_all("excluded", Exclusion)


def lift_for_user(node: str, cluster_name: str | None) -> list[Exclusion]:
    """Use a node again in new runs; returns what was lifted."""
    lifted = [(file, found) for file, found in _files(cluster_name) if found.node == node]
    for file, _ in lifted:
        file.unlink(missing_ok=True)
    return [found for _, found in lifted]


def lift_for_run(node: str, runs: RunStore) -> list[Exclusion]:
    """Use a node again in a run; returns what was lifted."""
    try:
        found = runs.read(_run_key(node), Exclusion)
    except (KeyMissing, Corrupt):
        return []
    runs.store.delete(runs.key(_run_key(node)))
    return [found]


def excluded_names(runs: RunStore, cluster_name: str) -> set[str]:
    """Return the names of nodes of a cluster that a run must not use."""
    return {e.node for e in [*of_user(cluster_name), *of_run(runs)] if e.cluster == cluster_name}


def pick(cluster: Cluster, run: str, count: int, excluded: Container[str], *, least: int | None = None) -> list[Node]:
    """Return `count` nodes for a run, none of them excluded; fewer if there are no more, but not less than `least`.

    Raises:
        TooFew: without those that are excluded there are not so many.
        ClusterError: so many cannot be had.
    """
    asked = count
    while True:
        try:
            usable = [n for n in cluster.nodes(run, asked) if n.name not in excluded]
        except ClusterError as error:
            there = [n for n in error.nodes if n.name not in excluded] if isinstance(error, Fewer) else []
            if least is not None and len(there) >= least:
                return there[:count]
            if asked == count:
                raise
            raise TooFew(
                f"{asked - count} nodes are excluded, and {count} others cannot be had: {error};"
                " `fglaunch nodes` lists them, `fglaunch nodes --lift NODE` uses one again"
            ) from error
        if len(usable) >= count:
            return usable[:count]
        asked += count - len(usable)


def _run_key(node: str) -> str:
    return f"excluded/{quote(node, safe='')}.json"

"""Which cluster: `--cluster NAME`, looked up in the user's own `clusters.toml`.

    default = "lab"            # used when --cluster is left out; otherwise local

    [lab]
    kind = "ssh"               # a backend: a module of `cluster`
    hosts = ["gpu1", "gpu2"]   # the rest is the backend's own

Any entry may also have prices and a lease: see `launcher.money`. A backend that needs no settings (`local`) can be
named without an entry.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from cluster import Cluster, ClusterError, Queue, Rented, kinds, open_cluster, open_queue
from fgtrain import lease
from fgtrain.errors import UserError
from launcher import money


def config_file() -> Path:
    """Return where the user's clusters are described."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(os.environ.get("FGLAUNCH_CLUSTERS") or Path(base) / "fglaunch" / "clusters.toml")


def work_root() -> Path:
    """Return where this machine keeps the working folders of runs."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(os.environ.get("FGLAUNCH_WORK") or Path(base) / "fglaunch" / "work")


def read_config() -> dict[str, Any]:
    """Return what `clusters.toml` says; nothing if there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = config_file()
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error


def entries(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each named cluster's settings, `kind` among them."""
    found = {"local": {"kind": "local"}}
    return found | {name: entry for name, entry in config.items() if isinstance(entry, dict)}


def choose(name: str | None, last: str | None = None) -> str:
    """Return the cluster's name: the one asked for, else the run's last one, else the default."""
    return name or last or str(read_config().get("default", "local"))


def find_entry(name: str) -> tuple[str, dict[str, Any]]:
    """Return the backend of a cluster, by the cluster's name, and its settings.

    Raises:
        UserError: there is none of this name, or its entry is wrong.
    """
    known = entries(read_config())
    entry = known.get(name) or ({"kind": name} if name in kinds() else None)
    if entry is None:
        raise UserError(f"--cluster {name}: {config_file()} has no [{name}]; there are: {', '.join(sorted(known))}")
    if not isinstance(entry.get("kind"), str):
        raise UserError(f"{config_file()}: [{name}] has no kind; there are: {', '.join(kinds())}")
    return entry["kind"], {key: value for key, value in entry.items() if key not in ("kind", *money.SETTINGS)}


def find_cluster(name: str, project: Path) -> Cluster:
    """Open a cluster by its name, to run in `project`.

    Raises:
        UserError: there is none of this name, or its entry is wrong.
        ClusterError: its backend cannot make sense of its settings.
    """
    return open_cluster(*find_entry(name), project, work_root())


def find_queue(name: str, project: Path) -> Queue | None:
    """Open the queue that jobs for a cluster wait in; None if it has none, or this is inside one of its jobs.

    Raises:
        UserError, ClusterError: as `find_cluster`.
    """
    queue = open_queue(*find_entry(name), project, work_root())
    return queue if queue and not queue.own else None


def terms_of(name: str) -> money.Terms:
    """Return the prices and the lease that `clusters.toml` gives a cluster, if any.

    Raises:
        UserError: they make no sense.
    """
    return money.read_terms(entries(read_config()).get(name, {}), f"{config_file()}: [{name}]")


def prices_on(name: str, cluster: Cluster) -> money.Prices | None:
    """Return what an hour of a cluster's nodes costs: what `clusters.toml` says, else what its backend knows."""
    return money.prices_of(terms_of(name), cluster)


def terms_on(name: str, cluster: Cluster) -> money.Terms:
    """Return a cluster's terms, with prices: what machines that it rents now would cost, as they are asked for.

    Raises:
        UserError: they make no sense.
    """
    terms = terms_of(name)
    if terms.prices or not isinstance(cluster, Rented):
        return terms._replace(prices=money.prices_of(terms, cluster))
    try:
        rate = money.rate_of(terms, cluster.offers(1)[0])
    except ClusterError:  # whoever rents them will say why
        rate = None
    return terms._replace(prices=None if rate is None else money.Prices(rate, rate))


def lease_on(terms: money.Terms, cluster: Cluster, store: str, run: str, term: int) -> dict[str, str]:
    """Return the environment by which a run's nodes end their work when nobody supervises it any more.

    `term`: the number of the supervisor that starts it.
    """
    lease_s = money.lease_of(terms, lasting=cluster.lasting)
    return {} if lease_s is None else lease.variables(lease_s, store, run, term)

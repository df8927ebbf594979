"""`fglaunch clusters`: what there is to run on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster import ClusterError, Inspectable, Report
from fgtrain.errors import UserError
from launcher.clusters import choose, config_file, entries, find_cluster, read_config

_GIB = 1 << 30


def call(args: argparse.Namespace) -> int:
    """List the clusters, or look at their machines; 1 if one of those cannot be used."""
    known = entries(read_config())
    if args.name is not None:
        if args.name not in known:
            raise UserError(f"{config_file()} has no [{args.name}]; there are: {', '.join(sorted(known))}")
        known = {args.name: known[args.name]}
    rows = check(known) if args.check else list_(known)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        Console().print(_checked(rows) if args.check else _listed(rows))
    return int(any(row.get("problem") for row in rows))


def list_(known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a cluster: its name, backend, whether it is the default, its other settings."""
    default = choose(None)
    return [
        {
            "cluster": name,
            "kind": entry.get("kind", ""),
            "default": name == default,
            "settings": {k: "..." if k == "env" else v for k, v in entry.items() if k != "kind"},  # may hold secrets
        }
        for name, entry in known.items()
    ]


def check(known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a machine; a cluster that cannot be opened, or looked at, is one row."""
    return [{"cluster": name, **report._asdict()} for name in known for report in _inspect(name)]


def _inspect(name: str) -> list[Report]:
    try:
        cluster = find_cluster(name, Path.cwd())
        if isinstance(cluster, Inspectable):
            return cluster.inspect()
        return [Report("", "", "")]
    except (ClusterError, UserError) as error:
        return [Report("", "", str(error))]


def _listed(rows: list[dict[str, Any]]) -> Table:
    table = _table("cluster", "kind", "", "settings")
    for row in rows:
        settings = ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in row["settings"].items())
        table.add_row(row["cluster"], row["kind"], "default" if row["default"] else "", settings)
    return table


def _checked(rows: list[dict[str, Any]]) -> Table:
    table = _table("cluster", "machine", "address", "python", "cores", "GPUs", "disk", "/dev/shm", "")
    for row in rows:
        if row["problem"]:
            table.add_row(row["cluster"], row["node"], row["address"], *[""] * 5, row["problem"])
            continue
        sizes = [f"{row[n] / _GIB:.1f} GiB" if row[n] else "" for n in ("disk_bytes", "shm_bytes")]
        counts = [str(row["cores"] or ""), str(len(row["gpus"])) if row["cores"] else ""]
        table.add_row(
            row["cluster"],
            row["node"],
            row["address"],
            row["python"],
            *counts,
            *sizes,
            "ok" if row["cores"] else "not looked at",
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table

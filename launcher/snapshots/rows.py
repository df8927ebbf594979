"""Snapshots as rows: what the listing and `verify` print, as a table and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fgtrain import manifest as manifests
from fgtrain.errors import Corrupt
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore

Row = dict[str, Any]


def rows(runs: RunStore, keys: Iterable[str], check: str, problem: Callable[[Manifest], str | None]) -> Iterator[Row]:
    """Describe snapshots.

    Args:
        runs: the run.
        keys: of the manifests, below the run's prefix.
        check: what `problem` looks at: "sizes" or "bytes".
        problem: tells what is wrong with a snapshot.
    """
    for key in keys:
        folder, name = key.split("/")
        step, attempt = map(int, name.split("-"))
        row = {"step": step, "attempt": attempt, "time": 0.0, "tier": urlsplit(runs.store.url).scheme, "world": 0}
        row |= {"weights": "", "bytes_new": 0, "bytes_shared": 0, "abandoned": folder == "abandoned", "check": check}
        try:
            manifest = manifests.decode(runs.store.get(runs.key(key)))
        except Corrupt as error:
            yield row | {"verified": False, "problem": str(error)}
            continue
        row |= {"time": manifest.created, "world": manifest.world, "weights": manifest.weights}
        row |= {"bytes_new": manifest.bytes_new, "bytes_shared": manifest.bytes_shared}
        found = problem(manifest)
        yield row | {"verified": found is None, "problem": found}


def show(found: list[Row], *, as_json: bool) -> None:
    """Print rows; the heading over yes and NO says what was looked at."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    check = found[0]["check"] if found else "bytes"
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "attempt", "time", "ranks", "new", "shared", "weights"):
        table.add_column(heading, justify="right" if heading in ("step", "new", "shared") else "left", no_wrap=True)
    table.add_column(f"{check} ok", overflow="fold")
    for r in found:
        when = time.strftime("%m-%d %H:%M", time.localtime(r["time"])) if r["time"] else "?"
        cells = (r["step"], r["attempt"], when, r["world"], decimal(r["bytes_new"]), decimal(r["bytes_shared"]))
        sound = "abandoned" if r["abandoned"] else "yes"
        table.add_row(*map(str, cells), r["weights"][:12], sound if r["verified"] else f"NO: {r['problem']}")
    Console().print(table)

"""`fglaunch snapshots RUN`: what is committed."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from fgtrain.errors import Corrupt
from fgtrain.manifest import Manifest
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.prepare import default_store
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    verified: set[str] = set()
    rows = [_row(runs, name, verified) for name in runs.manifest_names()]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "attempt", "time", "ranks", "new bytes", "shared bytes", "weights", "verified"):
        table.add_column(heading, justify="right" if "bytes" in heading or heading == "step" else "left")
    for r in rows:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(r["time"]))
        cells = (
            r["step"],
            r["attempt"],
            when,
            r["world"],
            r["bytes_new"],
            r["bytes_shared"],
            r["weights"][:16],
        )
        table.add_row(*map(str, cells), "yes" if r["verified"] else f"NO: {r['problem']}")
    Console().print(table)
    return 0


def _row(runs: RunStore, name: str, seen: set[str]) -> dict[str, Any]:
    """Describe one snapshot; `verified` means that every byte was read, here or `seen` before, and is as written."""
    try:
        manifest = runs.manifest(name)
    except Corrupt as error:
        step, attempt = map(int, name.split("-"))
        blank = {"time": 0.0, "world": 0, "weights": "", "bytes_new": 0, "bytes_shared": 0}
        return {"step": step, "attempt": attempt, **blank, "verified": False, "problem": str(error)}
    problem = _problem(runs, manifest, seen)
    return {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "time": manifest.created,
        "world": manifest.world,
        "weights": manifest.weights,
        "bytes_new": manifest.bytes_new,
        "bytes_shared": manifest.bytes_shared,
        "verified": problem is None,
        "problem": problem,
    }


def _problem(runs: RunStore, manifest: Manifest, seen: set[str]) -> str | None:
    """Return what is wrong with a snapshot; chunks that are whole join `seen`, so that shared ones are read once."""
    try:
        for chunk in manifest.chunks().keys() - seen:
            runs.get_chunk(chunk)
            seen.add(chunk)
    except Corrupt as error:
        return str(error)
    return None

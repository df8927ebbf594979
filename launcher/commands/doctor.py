"""`fglaunch doctor`: what is wrong with this machine, and how to mend it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.clusters import work_root
from launcher.health import Row, examine
from launcher.prepare import default_store

_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def call(args: argparse.Namespace) -> int:
    """Print what was found; 1 if something is bad."""
    rows = list(examine(_store_to_try(args.store), work_root()))
    if args.json:
        print(json.dumps([r._asdict() for r in rows], indent=1, ensure_ascii=False))
    else:
        Console().print(_table(rows))
    return int(any(r.state == "bad" for r in rows))


def _store_to_try(named: str | None) -> str | None:
    """Return the store to write a probe to; None if it would only make a folder that nobody asked for."""
    url = named or default_store()
    return url if named or "FGLAUNCH_STORE" in os.environ or Path(url).exists() else None


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "found", "fix"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.name, Text(row.state, _STYLES[row.state]), Text(row.found), Text(row.fix))
    return table

"""`fglaunch nodes`: nodes that are not used any more since they were found broken, and how to use one again."""

from __future__ import annotations

import argparse
import json
import time

import msgspec
from rich.console import Console
from rich.table import Table

from fgtrain.errors import UserError
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.exclusions import Exclusion, lift_for_run, lift_for_user, of_run, of_user
from launcher.foreground import say
from launcher.prepare import default_store
from launcher.status import existing_run


def call(args: argparse.Namespace) -> int:
    """List, or lift."""
    runs = RunStore(open_store(args.store or default_store()), args.run) if args.run else None
    if runs:
        existing_run(runs)
    if args.lift:
        lift(args.lift, args.cluster, runs)
        return 0
    found = [*of_user(args.cluster), *(of_run(runs) if runs else ())]
    found = [e for e in dict.fromkeys(found) if args.cluster in (None, e.cluster)]
    if args.json:
        print(json.dumps([msgspec.to_builtins(e) for e in found], indent=1, ensure_ascii=False))
    elif found:
        Console().print(_table(found))
    else:
        say("no node is excluded")
    return 0


def lift(node: str, cluster: str | None, runs: RunStore | None) -> None:
    """Use a node again.

    Raises:
        UserError: it is not excluded.
    """
    lifted = [*lift_for_user(node, cluster), *(lift_for_run(node, runs) if runs else ())]
    if not lifted:
        raise UserError(f"--lift {node}: no such node is excluded; `fglaunch nodes` lists those that are")
    for each in lifted:
        say(f"{each.node} of {each.cluster} is used again")


def _table(found: list[Exclusion]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "cluster", "since", "found by", "reason"):
        table.add_column(heading, overflow="fold")
    for e in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.time))
        table.add_row(e.node, e.cluster, since, e.run, e.reason)
    return table

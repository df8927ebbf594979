"""`fglaunch ps`: the runs of a store."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from fgtrain.errors import Corrupt, KeyMissing
from fgtrain.lease import read_spend
from fgtrain.runstore import RunFile, RunStore, run_names
from fgtrain.stores import open_store
from launcher.money import spell_cost
from launcher.prepare import default_store
from launcher.queued import read_job
from launcher.status import live_state, read_status


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    store = open_store(args.store or default_store())
    rows = [_row(RunStore(store, name)) for name in run_names(store)]
    rows.sort(key=lambda r: r["created"])
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False)
    priced = any(r["cost"] is not None for r in rows)
    for heading in ("run", "state", "step", "of", "recipe", "begun", "job", *(["cost"] if priced else [])):
        table.add_column(heading, justify="right" if heading in ("step", "of") else "left")
    for r in rows:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(r["created"]))
        cost = [spell_cost(r["cost"], r["step"])] if priced else []
        table.add_row(r["run"], r["state"], str(r["step"]), str(r["steps"]), r["recipe"], begun, r["job"], *cost)
    Console().print(table)
    return 0


def _row(runs: RunStore) -> dict[str, Any]:
    try:
        run, status = runs.read("run.json", RunFile), read_status(runs)
        spend, job = read_spend(runs), read_job(runs)
    except (Corrupt, KeyMissing) as error:  # of another version, damaged, or just deleted: the others are listed
        blank = {"step": 0, "steps": 0, "recipe": "", "created": 0.0, "job": "", "hours": 0.0, "cost": None}
        return {"run": runs.run, "state": "unreadable", **blank, "message": str(error)}
    return {
        "run": run.name,
        "state": live_state(status, runs),
        "step": status.step if status else 0,
        "steps": run.plan.steps,
        "recipe": run.recipe_file,
        "created": run.created,
        "job": job.id if job else "",
        "hours": round(spend.seconds / 3600, 4),
        "cost": spend.cost,
        "message": status.message if status else "",
    }

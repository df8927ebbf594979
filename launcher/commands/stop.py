"""`fglaunch stop RUN`: ask a run's supervisor, wherever it is, to stop."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from fgtrain.errors import UserError
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import orphans, queued
from launcher.clusters import find_cluster
from launcher.fleet import still_runs
from launcher.foreground import resume_command, say
from launcher.ownership import owner_of
from launcher.prepare import default_store
from launcher.status import Status, existing_run, live_state, read_status
from launcher.takeover import last_term

_TIMEOUT_S = 60.0


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    runs = RunStore(open_store(args.store or default_store()), args.run)
    run = existing_run(runs)
    status = read_status(runs)
    state = live_state(status, runs)
    if queued.stop(run, runs):
        return 0
    if state == "lost" and status and _stop_orphans(run, runs, status):
        return 0
    if state != "running":
        say(f"{args.run} is not running: it is {state}")
        return 0
    runs.write("stop", {"asked": time.time()})
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if live_state(read_status(runs), runs) != "running":
            say(f"{args.run} is stopped; `{resume_command(runs)}` goes on")
            return 0
        time.sleep(0.1)
    raise UserError(f"{args.run} did not stop within {_TIMEOUT_S:g} s; it will when its supervisor next looks")


def _stop_orphans(run: RunFile, runs: RunStore, status: Status) -> bool:
    """Stop agents that go on without a supervisor; False if there are none."""
    cluster, term = find_cluster(status.cluster, Path(run.cwd)), last_term(runs)
    owner = owner_of(run, runs.store.url)
    if term is None or not still_runs(cluster, term, owner):
        return False
    silent = orphans.end(cluster, owner, term.places)
    runs.write("status.json", msgspec.structs.replace(status, state="stopped", message="stopped on request"))
    which = f" but on {', '.join(silent)}, which cannot be reached, where their lease ends them" if silent else ""
    say(f"{run.name} had no supervisor; its agents are stopped{which}, and `{resume_command(runs)}` goes on")
    return True

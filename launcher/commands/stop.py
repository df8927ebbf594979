"""`fglaunch stop RUN`: ask a run's supervisor, wherever it is, to stop."""

from __future__ import annotations

import argparse
import time

from fgtrain.errors import UserError
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher import queued
from launcher.foreground import resume_command, say
from launcher.prepare import default_store
from launcher.status import existing_run, live_state, read_status

_TIMEOUT_S = 60.0


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    runs = RunStore(open_store(args.store or default_store()), args.run)
    if queued.stop(existing_run(runs), runs):
        return 0
    state = live_state(read_status(runs))
    if state != "running":
        say(f"{args.run} is not running: it is {state}")
        return 0
    runs.write("stop", {"asked": time.time()})
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if live_state(read_status(runs)) != "running":
            say(f"{args.run} is stopped; `{resume_command(runs)}` goes on")
            return 0
        time.sleep(0.1)
    raise UserError(f"{args.run} did not stop within {_TIMEOUT_S:g} s; it will when its supervisor next looks")

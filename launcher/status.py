"""The supervisor's last word on a run, and what can be concluded from it."""

from __future__ import annotations

import os
import socket
import time

import msgspec

from fgtrain.errors import KeyMissing, UserError
from fgtrain.runstore import RunFile, RunStore

HEARTBEAT_S = 5.0
_SILENT_S = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`status.json`. States: running, finished, stopped, failed. `updated` in Unix seconds."""

    state: str
    step: int
    steps: int
    updated: float
    host: str
    pid: int
    nodes: tuple[str, ...]
    message: str = ""


def read_status(runs: RunStore) -> Status | None:
    """Return a run's status, None if it was never started."""
    try:
        return runs.read("status.json", Status)
    except KeyMissing:
        return None


def live_state(status: Status | None) -> str:
    """Return the state of a run as it is now: a supervisor that fell silent is `lost`."""
    if status is None:
        return "created"
    if status.state != "running":
        return status.state
    if status.host == socket.gethostname():
        return "running" if _alive(status.pid) else "lost"
    return "running" if time.time() - status.updated < _SILENT_S else "lost"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def existing_run(runs: RunStore) -> RunFile:
    """Return a run's `run.json`.

    Raises:
        UserError: there is no such run.
    """
    try:
        return runs.read("run.json", RunFile)
    except KeyMissing:
        raise UserError(
            f"no run called {runs.run} in {runs.store.url}; `fglaunch ps --store {runs.store.url}` lists them"
        ) from None

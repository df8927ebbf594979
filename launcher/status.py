"""The supervisor's last word on a run, and what can be concluded from it."""

from __future__ import annotations

import socket
import time

import msgspec

from cluster import _host_processes
from fgtrain.errors import KeyMissing, UserError
from fgtrain.runstore import RunFile, RunStore, is_name

HEARTBEAT_S = 5.0
_SILENT_S = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`status.json`. States: running, finished, stopped, failed. `updated` in Unix seconds.

    `pid` and `token` are the supervisor's, see `process_token`; `cluster` is the one that it runs on, by name;
    `exit_code` the one that it ended with, None where a supervisor's end was not the run's. `since`: what supervisors
    before this number have started is not in its hands, and ends by itself (`fgtrain.lease`).
    """

    state: str
    step: int
    steps: int
    updated: float
    host: str
    pid: int
    token: str
    nodes: tuple[str, ...]
    message: str = ""
    cluster: str = "local"
    exit_code: int | None = None
    since: int = 0


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
        return "running" if process_token(status.pid) == status.token else "lost"
    return "running" if time.time() - status.updated < _SILENT_S else "lost"


process_token = _host_processes.token
"""What tells a living process from a later one of the same number; None if there is none."""


def existing_run(runs: RunStore) -> RunFile:
    """Return a run's `run.json`.

    Raises:
        UserError: there is no such run.
    """
    try:
        if is_name(runs.run):
            return runs.run_file()
    except KeyMissing:
        pass
    raise UserError(
        f"no run called {runs.run!r} in {runs.store.url}; `fglaunch ps --store {runs.store.url}` lists them"
    )

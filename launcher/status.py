"""The supervisor's last word on a run, and what can be concluded from it."""

from __future__ import annotations

import socket
import time

import msgspec

from cluster import _host_processes
from fgtrain import stores
from fgtrain.errors import FglaunchError, KeyMissing, UserError
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


def live_state(status: Status | None, runs: RunStore) -> str:
    """Return the state of a run, whose status was read from `runs`, as it is now.

    A supervisor that is dead, or on another host and has fallen silent, is `lost`.
    """
    if status is None:
        return "created"
    if status.state != "running":
        return status.state
    if status.host == socket.gethostname():
        return "running" if process_token(status.pid) == status.token else "lost"
    return "running" if _silent_s(status, runs) < _SILENT_S else "lost"


def _silent_s(status: Status, runs: RunStore) -> float:
    """Return how old a heartbeat is.

    Clocks of two hosts may differ. One that seems old, or comes from the future, is judged by the store's clock, which
    told the time of its writing and is asked for the time now; once, as a later heartbeat is another one.
    """
    silent_s = time.time() - status.updated
    if -HEARTBEAT_S < silent_s < _SILENT_S:
        return silent_s
    which = (runs.store.url, runs.run)
    beat, written = _written.get(which, (None, 0.0))
    if beat != status.updated:
        try:
            modified = runs.store.head(runs.key("status.json")).modified
            written = time.monotonic() - (stores.now(runs.store) - modified)
        except FglaunchError:  # it does not answer, or is not ours to write to: there is nothing better than clocks
            return silent_s
        _written[which] = status.updated, written
    return time.monotonic() - written


_written: dict[tuple[str, str], tuple[float, float]] = {}
"""Heartbeats that looked odd, by store and run: `updated`, and when that was by this process's `time.monotonic`."""


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

"""The supervisor's last word on a run, and what can be concluded from it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

from fgtrain.errors import KeyMissing, UserError
from fgtrain.runstore import RunFile, RunStore, is_name

HEARTBEAT_S = 5.0
_SILENT_S = 30.0
_START_TIME = 19  # field 22, counted from the one after the name. Source: proc(5)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`status.json`. States: running, finished, stopped, failed. `updated` in Unix seconds.

    `pid` and `token` are the supervisor's, see `process_token`; `cluster` is the one that it runs on, by name.
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


def process_token(pid: int) -> str | None:
    """Return what tells a living process from a later one of the same number; None if there is none.

    Where there is no /proc, the number has to do.
    """
    if not Path("/proc/self/stat").exists():
        return str(pid) if _exists(pid) else None
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if after_name[0] in "ZX":  # dead, and not yet waited for
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{after_name[_START_TIME]}"


def _exists(pid: int) -> bool:
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
        if is_name(runs.run):
            return runs.read("run.json", RunFile)
    except KeyMissing:
        pass
    raise UserError(
        f"no run called {runs.run!r} in {runs.store.url}; `fglaunch ps --store {runs.store.url}` lists them"
    )

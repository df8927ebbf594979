"""On a node: whose its working folder is. Standard library, and Python 3.8 will do: also sent over SSH.

Working folders are called after runs, and runs of two stores may have one name. So `<folder>/owner.json` says which run
a folder is of, and a run takes it before it starts anything there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import _host_processes as processes
from cluster import _marks

FILE = "owner.json"
_LATELY_S = 60.0


def claim(
    folder: str, owner: Mapping[str, Any], works: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | None:
    """Have a folder be a run's, made if need be; what another run has left in it is removed.

    Args:
        folder: where.
        owner: what is written down of the run; see `cluster.Owner`.
        works: told what is written down of another run, tells whether it is at work in the folder.

    Returns:
        What is written down of the run that is at work there, and keeps the folder; None: it is the owner's now.
    """
    place, found = Path(folder), read(folder)
    if found.get("id") != owner["id"]:
        unsigned = not found and owner.get("early")  # from before folders were signed, as the run is
        if not unsigned and works(found):
            return found
        if found:
            _empty(place)
    place.mkdir(parents=True, exist_ok=True)
    part = place / f".{FILE}-{os.getpid()}"
    part.write_text(json.dumps(dict(owner)))
    part.replace(place / FILE)
    return None


def read(folder: str) -> Mapping[str, Any]:
    """Return what is written down of a folder's owner; nothing if there is none."""
    try:
        return parse((Path(folder) / FILE).read_bytes())
    except OSError:
        return {}


def parse(data: bytes) -> Mapping[str, Any]:
    """Return what a folder's `FILE` says; nothing if it is empty, or broken."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def refusal(node: str, found: Mapping[str, Any]) -> str:
    """Say which run keeps a node's folder."""
    who = f"a run called {found['run']}, of {found['store']}," if found else "a run of an earlier version"
    return f"{node}: {who} is at work there: choose another --name, or stop it first"


def _empty(place: Path) -> None:
    """Remove all but the owner's name: should this be broken off, the next one has to go on with it."""
    for entry in place.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(str(entry), ignore_errors=True)
        elif entry.name != FILE:
            with contextlib.suppress(OSError):
                entry.unlink()


# -- who is at work -----------------------------------------------------------------------------------------------


def kept_programs(folder: str) -> bool:
    """Tell whether programs run that `_host_processes` has started in a folder."""
    with contextlib.suppress(OSError):
        return any(processes.find(folder, place.name) for place in (Path(folder) / ".processes").iterdir())
    return False


def signature() -> dict[str, Any]:
    """Return what a process writes down of itself where nothing that it starts outlives it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": processes.token(os.getpid())}


def signer_lives(found: Mapping[str, Any]) -> bool:
    """Tell whether another process of this machine has signed a folder, and lives."""
    pid = found.get("pid")
    here = found.get("host") == socket.gethostname() and isinstance(pid, int) and pid != os.getpid()
    return here and processes.token(int(found["pid"])) == found.get("token") is not None


def works_locally(folder: str, found: Mapping[str, Any]) -> bool:
    """Tell whether a run is at work in a folder, with programs of this machine, or of another that has the folder too.

    What another machine does cannot be seen, but what it writes.
    """
    if any(True for _ in _marks.marked_below(folder)) or signer_lives(found):
        return True
    return bool(found) and found.get("host") != socket.gethostname() and _written_lately(Path(folder))


def _written_lately(place: Path) -> bool:
    """Tell whether a file has changed of late, by the clock of whoever keeps the files."""
    probe = place / f".now-{os.getpid()}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return any(now - _changed(file) < _LATELY_S for file in place.rglob("*") if file != probe)
    except OSError:
        return False


def _changed(file: Path) -> float:
    try:
        return file.lstat().st_mtime if file.is_file() else 0.0
    except OSError:
        return 0.0

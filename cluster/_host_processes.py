"""On a node: programs that outlive the connection. Standard library, and Python 3.8 will do: sent over SSH.

A program is started by a keeper, a process in a session of its own that does nothing but wait for it and write down its
exit status; the keeper ends with the program, so nothing is left on the node after a run. In the node's folder,
`.processes/<name>/<nonce>.json`, its record, holds the program's process ID and start time, and `<nonce>.exit` its exit
status. Whoever started or found a program has its record, and shows it: the folder may be gone by then, with a disk or
by a reboot, and what runs is known all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import _marks
from cluster._marks import MARK, STARTER

_KEPT = 16  # records of ended programs, a name
_ROUND_S = 0.2  # of killing, in which no other request is answered
_START_TIME = 19  # field 22, counted from the one after the name. Source: proc(5)


def token(pid: int) -> str | None:
    """Return what tells a living process from a later one of the same number, across boots; None: there is none."""
    if not Path("/proc/self/stat").exists():
        return str(pid) if _exists(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":  # dead, and not yet waited for
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{fields[_START_TIME]}"


def start(
    folder: str,
    name: str,
    nonce: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    project: str,
    modules: str = "",
) -> dict[str, Any]:
    """Start a program, unless this very start (`nonce`) was asked for before; returns its record.

    The copies of the code that `project` and `modules` (for PYTHONPATH) lead to now are what it gets: a later
    one must not change what runs.

    Raises:
        OSError: it cannot be started.
    """
    env = dict(env)
    if modules:
        paths = [os.path.realpath(modules), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    place = _place(folder, name)
    place.mkdir(parents=True, exist_ok=True)
    if known := _record(place, nonce):
        return known
    _prune(place)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.setsid()
            if os.fork() == 0:
                _keep(folder, name, nonce, argv, env, project, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said: dict[str, Any] = json.loads(answer.read() or b'{"error": "its keeper died"}')
    os.waitpid(child, 0)
    if "error" in said:
        raise OSError(said["error"])
    return said


def status(folder: str, name: str, record: Mapping[str, Any]) -> int | None:
    """Return a program's exit status, or None while it runs; of one that left no word (a reboot), SIGKILL's."""
    lives = _is_there(record["keeper"], record["keeper_token"]) or _is_there(record["pid"], record["token"])
    code = _exit_status(_place(folder, name), record["nonce"])  # after the look at the keeper, which writes, then ends
    return code if code is not None or lives else -signal.SIGKILL


def find(folder: str, name: str) -> dict[str, Any] | None:
    """Return the record of the newest program of a name that still runs."""
    place = _place(folder, name)
    records = [r for r in (_record(place, f.stem) for f in place.glob("*.json")) if r]
    for record in sorted(records, key=lambda r: -float(r["started"])):
        if status(folder, name, record) is None:
            return record
    return None


def terminate(folder: str, name: str, record: Mapping[str, Any]) -> None:
    """Send SIGTERM to a program, if it runs."""
    if _is_there(record["pid"], record["token"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], signal.SIGTERM)


def kill(folder: str, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Kill a program and all that came of it, for a moment: ask again until nobody is left, and the status is known.

    Returns:
        `left`: who is there still, `spelled` with their states; `code`: its exit status, None if it is not known yet.
    """

    def strike() -> Sequence[int]:
        leader = record["pid"] if _is_there(record["pid"], record["token"]) else None
        return _marks.strike(record["mark"], leader)

    left = _marks.end(strike, _ROUND_S)
    return {"left": left, "spelled": _marks.spell(left), "code": status(folder, name, record)}


def _is_there(pid: int, known: str | None) -> bool:
    """Tell whether a process lives; of one that ended before its keeper looked, no token is known."""
    return known is not None and token(pid) == known


def _place(folder: str, name: str) -> Path:
    return Path(folder) / ".processes" / name


def _record(place: Path, nonce: str) -> dict[str, Any] | None:
    """Return a program's record; None if it is gone, or cannot be read."""
    try:
        record: dict[str, Any] = json.loads((place / f"{nonce}.json").read_text())
    except (OSError, ValueError):
        return None
    return record


def _exit_status(place: Path, nonce: str) -> int | None:
    try:
        return int((place / f"{nonce}.exit").read_text())
    except (OSError, ValueError):
        return None


def _prune(place: Path) -> None:
    """Remove the oldest records of ended programs."""
    ended = sorted(place.glob("*.exit"), key=lambda f: f.stat().st_mtime)
    for file in ended[:-_KEPT]:
        for old in (file.with_suffix(".json"), file):  # the status last: a record without one would look lost
            with contextlib.suppress(FileNotFoundError):
                old.unlink()


def _write(file: Path, text: str) -> None:
    """Write a small file; a reader sees all of it or none."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


def _keep(
    folder: str, name: str, nonce: str, argv: Sequence[str], env: Mapping[str, str], project: str, answer: int
) -> None:
    """Be the keeper: start the program, answer, wait, write its status. Does not return."""
    for fd in (0, 1, 2):  # else the connection stays open for as long as the program runs
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    try:
        program = _popen(folder, name, nonce, argv, env, project)
    except OSError as error:
        os.write(answer, json.dumps({"error": str(error)}).encode())
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stray one must not part it from its program
    record = {
        "nonce": nonce,
        "pid": program.pid,
        "token": token(program.pid),
        "keeper": os.getpid(),
        "keeper_token": token(os.getpid()),
        "mark": _mark(folder, name, nonce),
        "started": time.time(),
    }
    _write(_place(folder, name) / f"{nonce}.json", json.dumps(record))
    os.write(answer, json.dumps(record).encode())
    os.close(answer)
    code = program.wait()
    with contextlib.suppress(OSError):  # the folder may be gone: then nobody can be told
        _write(_place(folder, name) / f"{nonce}.exit", str(code))
    os._exit(0)


def _popen(
    folder: str, name: str, nonce: str, argv: Sequence[str], env: Mapping[str, str], project: str
) -> subprocess.Popen[bytes]:
    full = dict(os.environ)
    full.update(env)
    full.update({MARK: _mark(folder, name, nonce), STARTER: str(os.getpid())})
    with (Path(folder) / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            argv,
            env=full,
            cwd=os.path.realpath(project),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _mark(folder: str, name: str, nonce: str) -> str:
    return f"{folder}#{name}#{nonce}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

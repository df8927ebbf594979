"""On a node: serve requests on standard input until it ends. Standard library, and Python 3.8 will do: sent over SSH.

A message is a line of JSON and then as many bytes as its "body" says. A request has "id", "do" (one of `ACTIONS`) and
the action's arguments; its answer has the same "id" and "value", or "error" and "kind" (user: one line for the user).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from cluster import _host_claims as claims
from cluster import _host_files as files
from cluster import _host_processes as processes
from cluster import _host_prune as pruning
from cluster import _machine as machine

READY = b"\n=== fglaunch is ready ===\n"  # what login scripts print before this is dropped
READ_LIMIT = 256 << 10  # a slow line has this within the time that a reader waits


def hello() -> dict[str, Any]:
    """Describe this node. `reached`: its own address on the connection that brought us here."""
    reached = os.environ.get("SSH_CONNECTION", "").split()
    return {
        "home": str(Path.home()),
        "host": socket.gethostname(),
        "reached": reached[2] if len(reached) == 4 else "",
        "interfaces": machine.interface_addresses(),
        "cores": machine.cpu_count(),
        "gpus": machine.cuda_devices(),
        "python": platform.python_version(),
    }


def make_folder(folder: str) -> None:
    """Make a folder, and those above it."""
    Path(folder).mkdir(parents=True, exist_ok=True)


def claim(folder: str, owner: dict[str, Any]) -> dict[str, Any] | None:
    """See `_host_claims.claim`."""
    other = claims.claim(folder, owner, lambda found: claims.kept_programs(folder))
    return None if other is None else dict(other)


def read(path: str, offset: int) -> bytes:
    """Return up to READ_LIMIT bytes of a file; none if it is not there."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(READ_LIMIT)
    except FileNotFoundError:
        return b""


def port_in_use(address: str, port: int) -> bool:
    """See `Cluster`."""
    try:
        return machine.port_in_use(address, port)
    except PermissionError:
        raise files.HostError(f"port {port}: this user may not listen there; use one above 1023") from None


def inspect(python: str, folder: str) -> dict[str, Any]:
    """Return what `fglaunch clusters --check` shows; `python` empty: one is made when a run needs it."""
    found = files.python_version(python) if python else ""
    return {"python": found, "disk": machine.free_bytes(folder), "shm": machine.free_bytes("/dev/shm")}


ACTIONS = {
    "hello": hello,
    "claim": claim,
    "make_folder": make_folder,
    "read": read,
    "size": machine.file_size,
    "free_port": machine.free_port,
    "port_in_use": port_in_use,
    "inspect": inspect,
    "start": processes.start,
    "status": processes.status,
    "find": processes.find,
    "terminate": processes.terminate,
    "kill": processes.kill,
    "missing": files.missing,
    "assemble": files.assemble,
    "link": files.link,
    "keep": files.keep,
    "linked": files.linked,
    "make_environment": files.make_environment,
    "prune": pruning.prune,
}


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer one request after the other until `source` ends."""
    sink.write(READY)
    sink.flush()
    while line := source.readline():
        request = json.loads(line)
        body = source.read(request.pop("body", 0))
        answer, data = _answer(request.pop("id"), request.pop("do"), request, body)
        sink.write(json.dumps(dict(answer, body=len(data))).encode() + b"\n" + data)
        sink.flush()


def _answer(number: int, action: str, arguments: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    if body:
        arguments["body"] = body
    try:
        value = ACTIONS[action](**arguments)  # type: ignore[operator]
    except (OSError, files.HostError) as error:
        return {"id": number, "kind": "user", "error": str(error)}, b""
    except Exception:
        return {"id": number, "kind": "bug", "error": traceback.format_exc()}, b""
    if isinstance(value, bytes):
        return {"id": number, "value": None}, value
    return {"id": number, "value": value}, b""


def main() -> None:
    """Serve the one who started this; what programs and libraries print must not come between."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(sys.stdin.buffer, sink)

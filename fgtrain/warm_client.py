"""What torchrun starts in a worker's place: asks the warm process for the worker and stands for it.

Signals and the exit status are passed on; if this process is killed, so is the worker, and the other way round. It runs
as `python -I -S fgtrain/warm_client.py STORE RUN FOLDER`, with the standard library only, so that it is there at once.

    -> length (8 bytes) and JSON {argv, env, cwd}, with file descriptors 0, 1, 2; then a byte a signal
    <- "pid PID", then "exit STATUS" (negative for a signal), each with a newline; the end: the warm process died
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

OVER_SIGNAL = signal.SIGALRM
"""Kills the worker, whose round is over."""

EXIT_OVER = 1
"""What such a worker ended with: the same as one that lost its peers."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CONNECT_S = 5.0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid. Source: unix(7), SO_PEERCRED


def main() -> int:
    """Stand for a worker; returns its exit status."""
    connection = _connect(os.environ.get("FGLAUNCH_WARM_SOCKET"))
    if connection is None:
        _start_cold()

    def pass_on(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # its end is about to be read
            connection.send(bytes([signum]))

    def end_over(signum: int, frame: FrameType | None) -> None:
        """The worker's round is over: it is no failure of its own that it is killed."""
        over.append(True)
        with contextlib.suppress(OSError):
            connection.send(bytes([signal.SIGKILL]))

    over: list[bool] = []
    try:
        _ask(connection)
        signal.signal(OVER_SIGNAL, end_over)
        for sig in _PASSED_ON:
            signal.signal(sig, pass_on)
        answer = _answer(connection)
    except OSError:
        answer = b""
    if over:
        return EXIT_OVER
    if not answer.startswith(b"pid "):  # there was no worker yet
        _start_cold()
    return _as(answer)


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def _start_cold() -> NoReturn:
    """Be the worker, from scratch."""
    os.execv(sys.executable, [sys.executable, "-m", "fgtrain.worker", *sys.argv[1:]])


def _connect(name: str | None) -> socket.socket | None:
    if not name:
        return None
    deadline = time.monotonic() + _CONNECT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(f"\0{name}")
        except OSError:  # it died, and another begins
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        else:
            return connection if peer_uid(connection) == os.getuid() else None


def _ask(connection: socket.socket) -> None:
    import json

    request = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}  # noqa: PTH109 - pathlib takes long to import
    body = json.dumps(request, ensure_ascii=True).encode()  # as ASCII: what is not UTF-8 in the environment survives
    data = len(body).to_bytes(8, "big") + body
    sent = socket.send_fds(connection, [data], [0, 1, 2])
    connection.sendall(data[sent:])


def _answer(connection: socket.socket) -> bytes:
    data = b""
    while data.count(b"\n") < 2 and (some := _receive(connection)):
        data += some
    return data


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(64)
    except ConnectionResetError:
        return b""


def _as(answer: bytes) -> int:
    """End as the worker did."""
    words = answer.split()  # pid PID exit STATUS
    status = int(words[3]) if len(words) == 4 else -signal.SIGKILL
    if status >= 0:
        return status
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has left its own
    if -status in _PASSED_ON:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


if __name__ == "__main__":
    sys.exit(main())

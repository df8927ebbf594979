"""The agent's end of the warm process: it is kept alive as long as the agent is. Light.

The warm process (`fgtrain.warmup`) has imported what workers need and forks them; torchrun starts
`fgtrain.warm_client`, which asks it for a worker. Where it cannot be had, the client starts a worker from scratch.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

SOCKET = "FGLAUNCH_WARM_SOCKET"
"""Name, in the abstract namespace, of the socket that the warm process listens on."""

PRELOAD = "FGLAUNCH_PRELOAD"
"""Modules that workers will need, separated by commas."""

COLD = "FGLAUNCH_COLD"
"""If set, workers are started from scratch."""

READY = "FGLAUNCH_WARM_READY"
"""A file descriptor that the warm process writes to when it has imported all."""

EXIT_UNFIT = 3
"""The warm process cannot fork safely here: workers are started from scratch."""

_BACK_OFF_S = (0.0, 0.5, 2.0, 10.0)
_SETTLED_S = 60.0  # after so long, a death is not counted with those before
_ready = threading.Event()


def keep(worker_args: Sequence[str]) -> None:
    """Start the warm process, and another whenever it dies. Nothing happens where forking is not to be had."""
    if sys.platform != "linux" or not os.environ.get(PRELOAD) or os.environ.get(COLD):
        os.environ.pop(SOCKET, None)
        return
    os.environ[SOCKET] = f"fglaunch-{os.getpid()}-{secrets.token_hex(8)}"
    # The kernel ends the warm process with the thread that started it: this one goes on as long as the agent.
    threading.Thread(target=_serve, args=(list(worker_args),), name="warm", daemon=True).start()


def await_ready(timeout_s: float) -> bool:
    """Wait until workers start as fast as they ever will: from a warm process, or from scratch; False: not in time."""
    return not os.environ.get(SOCKET) or _ready.wait(timeout_s)


def _serve(worker_args: list[str]) -> None:
    deaths = 0
    while True:
        begun = time.monotonic()
        process = _start(worker_args)
        code = process.wait()
        if code == EXIT_UNFIT:
            os.environ.pop(SOCKET, None)
            return
        deaths = 0 if time.monotonic() - begun > _SETTLED_S else deaths + 1
        print(f"the warm process ended ({code}): started again", file=sys.stderr, flush=True)
        time.sleep(_BACK_OFF_S[min(deaths - 1, len(_BACK_OFF_S) - 1)] if deaths else 0.0)


def _start(worker_args: list[str]) -> subprocess.Popen[bytes]:
    """Start the warm process; returns when it has imported all, or has died."""
    heard, told = os.pipe()
    argv = [sys.executable, "-m", "fgtrain.warmup", *worker_args]
    process = subprocess.Popen(argv, env=os.environ | {READY: str(told)}, pass_fds=[told])
    os.close(told)
    os.read(heard, 1)
    os.close(heard)
    _ready.set()
    return process

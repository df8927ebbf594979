"""No orphans: a process asks the kernel to be killed when its parent is gone, or looks whether another one is."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping

from fgtrain.pulse import birth

LAUNCHER_PID = "FGLAUNCH_LAUNCHER_PID"
"""In a worker's environment: the process without which it must not go on, where that is not its parent."""

_LOOK_S = 0.5
_PR_SET_PDEATHSIG = 1  # Source: prctl(2)


def die_with_parent(sig: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Have `sig` sent to this process when its parent dies (Linux; elsewhere a no-op).

    Args:
        sig: what to be sent.
        parent: process ID of the parent; if it is not that any more, it died before this call and `sig` comes at once.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sig)
    if os.getppid() != expected:
        os.kill(os.getpid(), sig)


def die_with_launcher(environ: Mapping[str, str] = os.environ) -> threading.Thread | None:
    """Kill this process soon after the one that `LAUNCHER_PID` names is gone, if any is named."""
    if LAUNCHER_PID not in environ:
        return None
    pid = int(environ[LAUNCHER_PID])
    thread = threading.Thread(target=_watch, args=(pid, birth(pid)), name="lifeline", daemon=True)
    thread.start()
    return thread


def _watch(pid: int, born: str) -> None:
    over = threading.Event()
    while born and birth(pid) == born:
        over.wait(_LOOK_S)
    if sys.platform == "linux":  # elsewhere births cannot be told
        os.kill(os.getpid(), signal.SIGKILL)

"""No orphans: a process asks the kernel to be killed when its parent is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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

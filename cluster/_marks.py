"""A program and all that came of it, found by a mark in their environment, and killed.

Standard library, and Python 3.8 will do: it is also sent to nodes over SSH.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STARTER = "FGLAUNCH_STARTER_PID"
"""In the environment of everything started: who must live for the program to live."""
MARK = "FGLAUNCH_NODE_MARK"
"""In the environment of everything started, so that nothing escapes a kill."""
PAUSE_S = 0.02
END_S = 5.0
"""How long what was sent SIGKILL may take to be gone; one that waits in the kernel may take for ever."""


def marked(mark: str) -> Iterator[int]:
    """Yield living processes (zombies aside) that carry a mark in their environment; none where there is no /proc."""
    needle = f"{MARK}={mark}".encode()
    return (pid for pid, environ in _others() if needle in environ)


def marked_below(folder: str) -> Iterator[int]:
    """Yield living processes of what was started in a node's folder; see `marked`."""
    needle = f"{MARK}={folder}#".encode()
    return (pid for pid, environ in _others() if any(word.startswith(needle) for word in environ))


def _others() -> Iterator[tuple[int, list[bytes]]]:
    """Yield every other process whose environment can be read, with its words."""
    if not sys.platform.startswith("linux"):
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")


def strike(mark: str, leader: int | None) -> list[int]:
    """Send SIGKILL to all that carries a mark, and to the group of `leader`, if it lives; returns who was there."""
    if leader is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    there = set(marked(mark))
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return sorted(there if leader is None else there | {leader})


def end(struck: Callable[[], Sequence[int]], limit_s: float | None = None) -> list[int]:
    """Strike until nobody is there any more, or for `limit_s` (END_S) after the first time; returns who is left.

    Whoever is left was there when that time was over: a strike, which looks at all processes, may itself take long.
    """
    left = list(struck())
    deadline, over = time.monotonic() + (END_S if limit_s is None else limit_s), False
    while left and not over:
        time.sleep(PAUSE_S)
        over = time.monotonic() >= deadline
        left = list(struck())
    return left


def spell(left: Sequence[int]) -> str:
    """Name processes that SIGKILL did not end, each with its state on this machine."""
    return ", ".join(f"{pid} ({_state(pid)})" for pid in left)


def stays(name: str, spelled: str) -> str:
    """Say of a program that it could not be killed whole."""
    return f"{name} cannot be killed: {spelled} wait in the kernel, for a disk or a device that does not answer"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"

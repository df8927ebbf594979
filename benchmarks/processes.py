"""Finding the processes of a measured job, and signalling them: by parent, command line or environment. Linux."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path


def _pids() -> Iterator[int]:
    own = os.getpid()
    yield from (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != own)


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(pid)
    return found


def with_words(*words: str) -> list[int]:
    """Return processes whose command line has all these words."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(w in argv for w in words):
                found.append(pid)
    return found


def marked(text: str) -> list[int]:
    """Return processes that were started with some text in their environment."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def kill(pids: Sequence[int], sig: signal.Signals = signal.SIGKILL) -> None:
    """Signal processes, those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)

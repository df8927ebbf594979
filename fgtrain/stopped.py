"""Workers that somebody has stopped (SIGSTOP): to the others they look as if they hung. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped; one that a debugger looks at is not. Source: proc(5), the state "T"."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


class Stopped:
    """Remembers since when processes are stopped."""

    def __init__(self, limit_s: float, is_stopped: Callable[[int], bool] = is_stopped) -> None:
        self._limit_s, self._is_stopped = limit_s, is_stopped
        self._since: dict[int, float] = {}

    def look(self, pids: Iterable[int], now: float) -> list[int]:
        """Return those that have been stopped for too long; `now` in seconds of a clock that never goes back."""
        self._since = {pid: self._since.get(pid, now) for pid in pids if self._is_stopped(pid)}
        return [pid for pid, since in self._since.items() if now - since >= self._limit_s]

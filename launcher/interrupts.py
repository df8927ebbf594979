"""Ctrl-C and SIGTERM as a flag, so that what goes on can end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interrupts:
    """While entered, the process is not interrupted, and `received` tells whether somebody tried.

    Outside of the main thread, which alone hears signals, it never is. `then` is called each time, by the handler: it
    may end what the process waits for, and must not wait itself.
    """

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.received, self._then = False, then
        self._former: list[tuple[signal.Signals, object]] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._former = [(s, signal.signal(s, self._take)) for s in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *exception: object) -> None:
        for sig, handler in self._former:
            signal.signal(sig, handler)  # type: ignore[arg-type]

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        self._then()

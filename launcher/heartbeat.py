"""The supervisor's heartbeat while it is busy: a backend may take minutes to rent machines or to make an environment.

Else the run would look abandoned: another supervisor could take it over, and nodes with a lease would end their work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from fgtrain.errors import StoreError
from launcher.status import HEARTBEAT_S

AT_MOST_S = 3600.0
"""A supervisor that is busy for longer is stuck: others may take over."""


_STOP_S = 1.0


class Heartbeat:
    """A thread that beats whenever the supervisor has not done so itself for a while."""

    def __init__(
        self,
        beat: Callable[[], bool],
        last: Callable[[], float],
        every_s: float = HEARTBEAT_S,
        at_most_s: float = AT_MOST_S,
    ) -> None:
        """Begin.

        Args:
            beat: beats; False ends the thread: this supervisor is not the run's any more, and will find out.
            last: when the supervisor itself last did (seconds of `time.monotonic`).
            every_s: how often it should.
            at_most_s: for how long to stand in for it.
        """
        self._beat, self._last, self._every_s, self._at_most_s = beat, last, every_s, at_most_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="heartbeat", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.wait(self._every_s):
            busy_s = time.monotonic() - self._last()
            if busy_s < 1.5 * self._every_s or busy_s > self._at_most_s:
                continue
            with suppress(StoreError):  # told by the supervisor, when it looks at the store again
                if not self._beat():
                    return

    def stop(self) -> None:
        """End; a beat that the store is slow to take is not waited for."""
        self._over.set()
        self.wait(_STOP_S)

    def wait(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout_s)

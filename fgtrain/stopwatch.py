"""How long a rank works in a step before it meets the others, without making it wait for its device."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Stopwatch(Protocol):
    """Started and stopped once a step."""

    def start(self) -> None:
        """The step begins."""

    def stop(self) -> None:
        """What comes next waits for other ranks."""

    def seconds(self) -> float:
        """Return what lay between them in the last step that is known; 0.0 if none is."""


class HostStopwatch:
    """For CPU ranks, which compute as they go."""

    def __init__(self) -> None:
        self._started = self._seconds = 0.0

    def start(self) -> None:
        """See `Stopwatch`."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """See `Stopwatch`."""
        self._seconds = time.perf_counter() - self._started

    def seconds(self) -> float:
        """See `Stopwatch`."""
        return self._seconds


class CudaStopwatch:
    """For CUDA devices, which compute later: events in their stream. An idle stream counts, as it waits for pictures.

    A step whose events have not both passed when the next begins is left out: nothing waits for a clock.
    """

    def __init__(self) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._stopped = self._busy = False
        self._seconds = 0.0

    def start(self) -> None:
        """See `Stopwatch`."""
        self._busy = self._stopped and not self._events[1].query()  # type: ignore[no-untyped-call]
        if not self._busy:
            self._stopped = False
            self._events[0].record()

    def stop(self) -> None:
        """See `Stopwatch`."""
        if not self._busy:
            self._events[1].record()
            self._stopped = True

    def seconds(self) -> float:
        """See `Stopwatch`."""
        if self._stopped and self._events[1].query():  # type: ignore[no-untyped-call]
            self._seconds = self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._seconds


def make_stopwatch(device: torch.device) -> Stopwatch:
    """Return the stopwatch for a device."""
    return CudaStopwatch() if device.type == "cuda" else HostStopwatch()

"""Staging: copying one rank's share of the state into host memory while training goes on.

After an optimizer step, parameters and optimizer state rest until the next one; the copy has all of the next forward
and backward to overlap with, and must have drained before the optimizer moves them. What the forward pass itself
changes (buffers, such as BatchNorm's) is copied at once; it is small.

    stager.begin(...)      right after a step
    stager.drain()         before the next one; what is left of the copy then is the stall
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import torch

from fgtrain.shards import Sharded
from fgtrain.snapshot.layout import Layout, Tensors, flat_bytes


class Piece(NamedTuple):
    """Bytes to copy: `source` and `target` are flat uint8 of one length."""

    source: torch.Tensor
    target: torch.Tensor


def pieces(
    layout: Layout,
    tensors: Tensors,
    group: str,
    start: int,
    stop: int,
    target: torch.Tensor,
    only: set[str] | None = None,
) -> list[Piece]:
    """Return what to copy so that `target` (flat uint8) holds the bytes [start, stop) of a group, less its shards.

    Args:
        layout: where tensors lie.
        tensors: the live ones.
        group: which group.
        start: first byte, in the group.
        stop: one past the last.
        target: where to, `stop - start` bytes.
        only: names to restrict to; None for all.
    """
    found = []
    for name, tensor in tensors[group].items():
        if isinstance(tensor, Sharded):
            continue  # `fgtrain.snapshot.exchange` brings its bytes
        span = layout.spans[name]
        lo, hi = max(start, span.offset), min(stop, span.offset + span.bytes_)
        if lo < hi and (only is None or name in only):
            source = flat_bytes(tensor, span.order)[lo - span.offset : hi - span.offset]
            found.append(Piece(source, target[lo - start : hi - start]))
    return found


class Stager(Protocol):
    """Copies pieces in the background."""

    copy_s: float
    """How long the last copy took, in seconds; 0 before the first."""

    def begin(self, now: list[Piece], later: list[Piece], done: Callable[[], None]) -> None:
        """Copy `now` before returning and `later` in the background, then call `done` there."""

    def drain(self) -> None:
        """Return once the sources may change again."""

    def finish(self) -> None:
        """Return once `done` has returned too."""


class _Background:
    """One thread that does one thing at a time. It stays: starting a thread waits for it to run, this does not."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Begin a job; the last one must have finished."""
        self._idle.clear()
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="staging", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException:  # a job that dies must not leave the training waiting
                traceback.print_exc()
            finally:
                self._idle.set()

    def finish(self) -> None:
        """Return once the job is done."""
        self._idle.wait()


class HostStager:
    """Copies host tensors in one background thread; torch's copy runs without the interpreter's lock."""

    def __init__(self) -> None:
        self._background = _Background()
        self._copied = threading.Event()
        self._copied.set()
        self.copy_s = 0.0

    def begin(self, now: list[Piece], later: list[Piece], done: Callable[[], None]) -> None:
        """See `Stager`."""
        self.finish()
        _copy(now)
        self._copied.clear()
        self._background.do(partial(self._work, later, done))

    def _work(self, later: list[Piece], done: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            _copy(later)
        finally:
            self._copied.set()
        self.copy_s = time.perf_counter() - started
        done()

    def drain(self) -> None:
        """See `Stager`."""
        self._copied.wait()

    def finish(self) -> None:
        """See `Stager`."""
        self._background.finish()


class CudaStager:
    """Copies device tensors on a side stream into page-locked memory; no host thread waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._background = _Background()
        self.copy_s = 0.0

    def begin(self, now: list[Piece], later: list[Piece], done: Callable[[], None]) -> None:
        """See `Stager`. Pieces of host tensors (an optimizer's step counts) are copied at once."""
        self.finish()
        host = [p for p in later if p.source.device.type == "cpu"]
        _copy(host)
        _copy(now, non_blocking=True)  # on the current stream: ordered before the next forward
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        device = [p for p in later if p.source.device.type != "cpu"]
        for piece in device:  # one that is no view of the state, but a copy, must not be given to another until then
            piece.source.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            _copy(device, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(self._stream)
        started = time.perf_counter()
        self._background.do(partial(self._work, self._event, started, done))

    def _work(self, event: torch.cuda.Event, started: float, done: Callable[[], None]) -> None:
        event.synchronize()
        self.copy_s = time.perf_counter() - started
        done()

    def drain(self) -> None:
        """See `Stager`: the stream that runs the optimizer waits, the host does not."""
        torch.cuda.current_stream(self._device).wait_event(self._event)

    def finish(self) -> None:
        """See `Stager`."""
        self._background.finish()


def _copy(what: list[Piece], *, non_blocking: bool = False) -> None:
    if what:
        with torch.no_grad():
            torch._foreach_copy_([p.target for p in what], [p.source for p in what], non_blocking)


def make_stager(device: torch.device) -> Stager:
    """Return the stager that suits where the state lives."""
    return CudaStager(device) if device.type == "cuda" else HostStager()


def page_lock(memory: torch.Tensor) -> None:
    """Lock host memory so that the device can copy into it without a bounce; where that fails, copies still work."""
    if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)):  # type: ignore[no-untyped-call]
        # CUDA keeps the error for whoever asks next, which is the next kernel's launch: let it be this one.
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")


def page_unlock(memory: torch.Tensor) -> None:
    """Undo `page_lock`, before the memory goes: the device would write to its old pages, whatever is mapped there."""
    if int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())):  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")

"""The rank's end of its uploader process: orders to it, reports from it, and another one when it has died."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from queue import Empty, SimpleQueue

import msgspec

from fgtrain.snapshot.protocol import Abandon, Committed, Failed, Persist, Quit, Report, Stored, encode
from fgtrain.snapshot.uploader import Start

DIED = "the uploader process died"
_QUIT_TIMEOUT_S = 10.0


class Uploads:
    """Hands this rank's shares to an uploader process; every order is answered, if need be in its stead."""

    def __init__(self, start: Start) -> None:
        """Plan to start uploaders with `start`; none is started yet."""
        self._start = start
        self._process: _Process | None = None
        self._reports: SimpleQueue[Report] = SimpleQueue()

    def ensure(self, base: str | None) -> None:
        """See that there is an uploader. The kernel ends it with the thread that calls this: call from the main one.

        Args:
            base: the newest manifest known to be committed.
        """
        if self._process and not self._process.dead:
            return
        if self._process:  # what it had found out has died with it
            self._start = msgspec.structs.replace(self._start, verified=False)
        self._start = msgspec.structs.replace(self._start, last=base)
        self._process = _Process(self._start, self._reports)

    @property
    def started(self) -> bool:
        """Whether there ever was an uploader."""
        return self._process is not None

    def order(self, what: Persist | Abandon) -> None:
        """Give an order; from any thread."""
        if self._process is None or not self._process.order(what):
            self.answer(Failed(what.step, what.slot, DIED, False))

    def answer(self, report: Report) -> None:
        """Add a report in the uploader's stead."""
        self._reports.put(report)

    def report(self, timeout_s: float = 0.0) -> Report | None:
        """Return the next report, None if there is none within `timeout_s`."""
        try:
            return self._reports.get(timeout=timeout_s) if timeout_s else self._reports.get_nowait()
        except Empty:
            return None

    def close(self) -> None:
        """Let the uploader finish what it was asked for; one that takes long is killed."""
        if self._process:
            self._process.close()


class _Process:
    """One uploader, and what it has not answered yet."""

    def __init__(self, start: Start, reports: SimpleQueue[Report]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fgtrain.snapshot.uploader", msgspec.json.encode(start).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.dead = False
        self._lock = threading.Lock()
        self._open: dict[int, str] = {}  # step -> slot
        self._reports = reports
        self._last_word = Committed if start.rank == 0 else Stored
        self._listener = threading.Thread(target=self._listen, name="uploader reports", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(msgspec.DecodeError):  # killed in mid-line
            for line in self._process.stdout:
                report: Report = msgspec.json.decode(line, type=Report)
                with self._lock:
                    self._note(report)
                self._reports.put(report)
        with self._lock:
            self.dead = True
            self._let_go()
            for step, slot in self._open.items():
                self._reports.put(Failed(step, slot, DIED, False))

    def _note(self, report: Report) -> None:
        if isinstance(report, Failed | self._last_word):
            self._open.pop(report.step, None)
        elif isinstance(report, Stored) and report.step in self._open:
            self._open[report.step] = ""  # the slot may hold something else by the time the commit is decided

    def _let_go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # an order that nobody read
            self._process.stdin.close()
        self._process.wait()

    def order(self, what: Persist | Abandon) -> bool:
        """Pass an order on; False if nobody is there to take it."""
        assert self._process.stdin is not None
        with self._lock:
            if self.dead:
                return False
            self._open[what.step] = what.slot
            with contextlib.suppress(BrokenPipeError):  # the listener is about to hear of its end
                self._process.stdin.write(encode(what))
                self._process.stdin.flush()
        return True

    def close(self) -> None:
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):  # ValueError: it has died and was let go
            self._process.stdin.write(encode(Quit()))
            self._process.stdin.close()
        try:
            self._process.wait(_QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._listener.join(_QUIT_TIMEOUT_S)
        if self._process.stdout:
            self._process.stdout.close()

"""The rank's end of its uploader process: orders to it, reports from it, and another one when it has died."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue

import msgspec

from fgtrain.snapshot.protocol import (
    Abandon,
    Committed,
    Copied,
    Copy,
    Failed,
    GivenUp,
    Listening,
    Meet,
    Persist,
    Quit,
    Report,
    Stored,
    encode,
)
from fgtrain.snapshot.replicate import Peer
from fgtrain.snapshot.uploader import Start

DIED = "the uploader process died"
_QUIT_TIMEOUT_S = 10.0
_TRIES = 5  # at telling rank 0 what died, with an uploader each, between two orders


class Uploads:
    """Hands this rank's shares to an uploader process; every order is answered, if need be in its stead."""

    def __init__(self, start: Start) -> None:
        """Start one with `start`, from the main thread: the kernel ends it with the thread that starts it."""
        self._start = start
        self._swap = threading.Lock()  # held while an uploader is replaced, and while it gets orders
        self._peer: Peer | None = None
        self._tries = 0
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._process = _Process(start, self._reports)

    @property
    def pid(self) -> int:
        """The uploader's process ID."""
        return self._process.pid

    @property
    def dead(self) -> bool:
        """Whether the uploader is known to have died."""
        return self._process.dead

    def ensure(self, base: str | None) -> None:
        """Replace an uploader that has died; from the main thread.

        Args:
            base: the newest manifest known to be committed.
        """
        if self._process.dead:
            self._tries = 0
            self._replace(base)

    def mend(self, base: str | None) -> None:
        """Replace an uploader that died before it had told rank 0 what died with those before it; from the main thread.

        It may have had no order, whose failure would be heard of, and rank 0 waits.
        """
        if self._process.dead and self._tries < _TRIES and self._process.lost():
            self._tries += 1
            self._replace(base)

    def _replace(self, base: str | None) -> None:
        # What it had found out has died with it; other ranks expect the next one at the same port.
        port = self._process.port
        with self._swap:
            lost = self._process.lost()
            self._start = msgspec.structs.replace(self._start, last=base, verified=False, port=port, abandoned=lost)
            self._process = _Process(self._start, self._reports)
        if self._peer:
            self._process.tell(Meet(self._peer))

    def meet(self, peer: Peer) -> None:
        """Have copies sent to a peer from now on."""
        self._peer = peer
        self._process.tell(Meet(peer))

    def order(self, what: Persist | Abandon | Copy) -> None:
        """Give an order; from any thread."""
        with self._swap:
            taken = self._process.order(what)
        if not taken:
            self.answer(_died(what))

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
        self._process.close()


def _died(order: Persist | Abandon | Copy) -> Report:
    if isinstance(order, Copy):
        return Copied(order.step, order.slot, DIED)
    return Failed(order.step, order.slot, DIED, False)


class _Process:
    """One uploader, and what it has not answered yet."""

    def __init__(self, start: Start, reports: SimpleQueue[Report]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fgtrain.snapshot.uploader", msgspec.json.encode(start).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.dead = False
        self._lost = set(start.abandoned)  # steps whose shares were never stored, which rank 0 has not been told
        self._told = start.rank == 0  # it knows of its own
        self.port = start.port
        self._lock = threading.Lock()
        self._open: dict[int, Persist | Abandon] = {}  # by step
        self._copies: dict[int, Copy] = {}
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
                if not isinstance(report, GivenUp):
                    self._reports.put(report)
        with self._lock:
            self.dead = True
            self._let_go()
            self._lose(self._open)
            for order in [*self._open.values(), *self._copies.values()]:
                self._reports.put(_died(order))

    def _note(self, report: Report) -> None:
        if isinstance(report, Listening):
            self.port = report.port
        elif isinstance(report, GivenUp):
            self._lost.discard(report.step)
        elif isinstance(report, Copied):
            self._copies.pop(report.step, None)
        elif isinstance(report, Failed | self._last_word):
            self._open.pop(report.step, None)
        elif report.step in self._open:  # the slot may hold something else by the time the commit is decided
            self._open[report.step] = msgspec.structs.replace(self._open[report.step], slot="")

    def _let_go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # an order that nobody read
            self._process.stdin.close()
        self._process.wait()

    def _lose(self, steps: Iterable[int]) -> None:
        if not self._told:
            self._lost.update(steps)

    def lost(self) -> tuple[int, ...]:
        """Return the steps whose shares died with it or with those before it, and which rank 0 has not been told.

        Once it is dead: waits, while its listener still counts them.
        """
        with self._lock:
            return tuple(sorted(self._lost))

    def order(self, what: Persist | Abandon | Copy) -> bool:
        """Pass an order on; False if nobody is there to take it."""
        with self._lock:
            if self.dead:
                self._lose([] if isinstance(what, Copy) else [what.step])
                return False
            if isinstance(what, Copy):
                self._copies[what.step] = what
            else:
                self._open[what.step] = what
        self.tell(what)
        return True

    def tell(self, what: Persist | Abandon | Copy | Meet) -> None:
        """Pass on what needs no answer, or what will be answered in its stead."""
        assert self._process.stdin is not None
        with self._lock:
            if not self.dead:
                with contextlib.suppress(BrokenPipeError):  # the listener is about to hear of its end
                    self._process.stdin.write(encode(what))
                    self._process.stdin.flush()

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

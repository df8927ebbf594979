"""Taking turns: training loops that live side by side and run one at a time, a few steps each.

Noise on a shared machine comes in waves of seconds to minutes. Loops measured one after another each meet another
wave; loops that alternate every few steps meet the same one, so the ratio of neighbouring windows is steady where
absolute times are not. Every rank of every loop waits at a step boundary until the driver grants it a window: some
steps to settle in (its loader prepared batches while it waited), then some that are timed.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import NamedTuple

import msgspec

START_TIMEOUT_S = 300.0
_POLL_S = 0.2
_LOG_TAIL = 8000  # characters of a dead loop's log that are shown


class Hello(msgspec.Struct, frozen=True):
    """A rank of a loop is ready for its first window."""

    loop: str
    rank: int


class Window(msgspec.Struct, frozen=True):
    """Leave to run `settle` steps and then `timed` ones; without a timed step: to leave."""

    settle: int
    timed: int


class Measure(msgspec.Struct, frozen=True):
    """What the timed steps of a window took: seconds by the clock, and of this process's processor time."""

    wall_s: float
    cpu_s: float


class Turn:
    """One rank's side: `over` holds it back until it is its loop's turn."""

    def __init__(self, address: str, loop: str, rank: int, drain: Callable[[], None] = lambda: None) -> None:
        """Report for duty. `drain` waits for work that was only queued, before a clock is read."""
        self._driver: Connection[bytes, bytes] = Client(address)
        self._drain = drain
        self._window = Window(0, 0)
        self._steps = 0
        self._begun = (0.0, 0.0)
        self._driver.send_bytes(msgspec.json.encode(Hello(loop, rank)))

    def over(self) -> bool:
        """Call before each optimizer step; waits for the turn. Returns whether the loop should leave instead.

        Raises:
            EOFError: the driver died.
        """
        if self._steps == self._window.settle + self._window.timed:
            if self._window.timed:
                self._report()
            self._window = msgspec.json.decode(self._driver.recv_bytes(), type=Window)
            self._steps = 0
            if not self._window.timed:
                return True
        if self._steps == self._window.settle:
            self._drain()
            self._begun = (time.perf_counter(), time.process_time())
        self._steps += 1
        return False

    def _report(self) -> None:
        self._drain()
        wall_s, cpu_s = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        self._driver.send_bytes(msgspec.json.encode(Measure(wall_s, cpu_s)))


Arrival = tuple[Hello, "Connection[bytes, bytes]"]


class LoopDied(Exception):
    """A loop ended by itself; the message holds the end of its log."""


class Loop(NamedTuple):
    """One loop: its processes (torchrun and what it started), its log, its ranks' connections."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ranks: dict[int, Connection[bytes, bytes]]

    def check(self) -> None:
        """Fail if the loop is no more.

        Raises:
            LoopDied
        """
        if self.process.poll() is not None:
            tail = self.log.read_text("utf-8", "replace")[-_LOG_TAIL:]
            raise LoopDied(f"{self.name} ended with exit code {self.process.returncode}:\n{tail}")

    def window(self, settle: int, timed: int) -> Measure:
        """Let the loop run; returns the slowest rank's time and the mean processor time of its ranks.

        Raises:
            LoopDied
        """
        for rank in self.ranks.values():
            rank.send_bytes(msgspec.json.encode(Window(settle, timed)))
        found = [self._measure(rank) for rank in self.ranks.values()]
        return Measure(max(m.wall_s for m in found), sum(m.cpu_s for m in found) / len(found))

    def _measure(self, rank: Connection[bytes, bytes]) -> Measure:
        while not rank.poll(_POLL_S):
            self.check()
        try:
            return msgspec.json.decode(rank.recv_bytes(), type=Measure)
        except EOFError:
            self.process.wait()
            self.check()
            raise

    def leave(self, grace_s: float = 20.0) -> None:
        """Ask the loop to end, and make it if it does not; nothing of it is left running."""
        with suppress(OSError, subprocess.TimeoutExpired):
            for rank in self.ranks.values():
                rank.send_bytes(msgspec.json.encode(Window(0, 0)))
            if self.ranks:
                self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(
    commands: Mapping[str, Callable[[str], Sequence[str]]], env: Mapping[str, str], cwd: Path, logs: Path, ranks: int
) -> Iterator[dict[str, Loop]]:
    """Start loops, each from its command line for a driver's address, and hold them ready for their first window.

    Raises:
        LoopDied: one did not get that far.
    """
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket's name has room for 100 characters
        listener = Listener(str(Path(folder) / "driver"), backlog=64)
        arrivals: queue.Queue[Arrival] = queue.Queue()
        accepting = threading.Thread(target=_accept, args=(listener, arrivals), daemon=True)
        accepting.start()
        loops: dict[str, Loop] = {}
        try:
            for name, command in commands.items():
                argv = command(str(listener.address))
                loops[name] = _start(name, argv, env, cwd, logs / f"{name}.log")
            _gather(loops, arrivals, ranks)
            yield loops
        finally:
            for loop in loops.values():
                loop.leave()
            Client(str(listener.address)).close()  # the one that ends the accepting
            accepting.join()
            listener.close()


def _start(name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Loop:
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    return Loop(name, process, log, {})


def _accept(listener: Listener, arrivals: queue.Queue[Arrival]) -> None:
    with suppress(EOFError):  # one that says nothing
        while True:
            arrived = listener.accept()
            arrivals.put((msgspec.json.decode(arrived.recv_bytes(), type=Hello), arrived))


def _gather(loops: Mapping[str, Loop], arrivals: queue.Queue[Arrival], ranks: int) -> None:
    """Wait until every rank of every loop has said hello."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while missing := [loop for loop in loops.values() if len(loop.ranks) < ranks]:
        for loop in loops.values():
            loop.check()
        if time.monotonic() > deadline:
            raise LoopDied(f"{missing[0].name} did not start within {START_TIMEOUT_S:.0f} s")
        with suppress(queue.Empty):
            hello, arrived = arrivals.get(timeout=_POLL_S)
            loops[hello.loop].ranks[hello.rank] = arrived


def alternate(
    loops: Mapping[str, Loop],
    rounds: int,
    *,
    settle: int,
    timed: int,
    told: Callable[[int], None] = lambda _: None,
    seconds: float = math.inf,
) -> dict[str, list[Measure]]:
    """Give every loop a window a round, in an order that turns and flips so that none always follows the same one.

    Args:
        loops: which.
        rounds: how many windows each gets.
        settle: steps before each window's clock starts.
        timed: steps that are timed.
        told: called with each round done.
        seconds: no round begins after so many of them.

    Returns:
        Each loop's windows; those of one position were taken next to each other.
    """
    found: dict[str, list[Measure]] = {name: [] for name in loops}
    deadline = time.monotonic() + seconds
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for name in turn_order(list(loops), number):
            found[name].append(loops[name].window(settle, timed))
        told(number + 1)
    return found


def turn_order(names: Sequence[str], round_: int) -> list[str]:
    """Return who goes when: rotated by one every second round, reversed in every second."""
    shift = round_ // 2 % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if round_ % 2 else order

"""The pulse of a node's ranks: a small file, a slot a rank, from which the launching side sees who moves and who hangs.

A slot is written into mapped memory, a few microseconds a step and no system call. A thread ticks once a second, so
that a rank that waits (for a collective, say) can be told from one that is frozen. No torch here.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

FILE = "pulse"
TICK_S = 1.0
_SLOT = 128
_BODY = struct.Struct("<4sHxxIIQQQd16s")  # magic, phase, rank, attempt, pid, first, step, work_s, born
_CRC = struct.Struct("<I")  # of the body: it is written in one go, but not in one instant
_TICKS = struct.Struct("<Q")
_AT_CRC = _BODY.size
_AT_TICKS = 96  # each of its own writer, so that no lock is needed: these bytes are the thread's
_PASSES = struct.Struct("<I")
_AT_PASSES = 112
_AT_STAGE = 120
_MAGIC = b"fgp3"


class Phase(IntEnum):
    """What a rank is about."""

    START = 0
    RESTORE = 1
    STEP = 2
    EVALUATE = 3
    FINISH = 4
    PREPARE = 5
    COMPILE = 6
    DONE = 7


class Stage(IntEnum):
    """Where in a step a rank is: before its pictures, waiting for them, computing, exchanging, updating."""

    NONE = 0
    LOAD = 1
    COMPUTE = 2
    EXCHANGE = 3
    UPDATE = 4


class Beat(NamedTuple):
    """One slot. `step` is the one being taken, from 0, and `first` the attempt's first.

    `work_s` is a step's work before the exchange, as of a micro-batch.

    `born` tells the process from a later one with its number. `passes`: where each pass through the network involves
    all ranks, which one of the step this is, from 1 and the same on all; 0 elsewhere.
    """

    slot: int
    phase: Phase
    stage: Stage
    rank: int
    attempt: int
    pid: int
    step: int
    ticks: int
    work_s: float
    born: str
    first: int = 0
    passes: int = 0


def encode(beat: Beat) -> bytes:
    """Return a slot's bytes."""
    slot = bytearray(_SLOT)
    body = _BODY.pack(
        *(_MAGIC, beat.phase, beat.rank, beat.attempt, beat.pid, beat.first, beat.step, beat.work_s),
        beat.born.encode()[:16],
    )
    slot[: _BODY.size] = body
    _CRC.pack_into(slot, _AT_CRC, zlib.crc32(body))
    _TICKS.pack_into(slot, _AT_TICKS, beat.ticks)
    _PASSES.pack_into(slot, _AT_PASSES, beat.passes)
    slot[_AT_STAGE] = beat.stage
    return bytes(slot)


def decode(data: bytes) -> list[Beat]:
    """Return the slots of a pulse file that are whole; one that is just being written is passed over."""
    return [b for i in range(len(data) // _SLOT) if (b := _decode_slot(i, data[i * _SLOT : (i + 1) * _SLOT]))]


def _decode_slot(slot: int, data: bytes) -> Beat | None:
    body = data[: _BODY.size]
    if not body.startswith(_MAGIC) or _CRC.unpack_from(data, _AT_CRC)[0] != zlib.crc32(body):
        return None
    _, phase, rank, attempt, pid, first, step, work_s, born = _BODY.unpack(body)
    ticks, stage = _TICKS.unpack_from(data, _AT_TICKS)[0], Stage(data[_AT_STAGE])
    passes = _PASSES.unpack_from(data, _AT_PASSES)[0]
    text = born.rstrip(b"\0").decode()
    return Beat(slot, Phase(phase), stage, rank, attempt, pid, step, ticks, work_s, text, first, passes)


def birth(pid: int) -> str:
    """Return when a process began, in the kernel's ticks since boot; empty where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:  # Source of the field's number: proc(5), 22 counted from the process's ID
        return ""


def alive(beat: Beat) -> bool:
    """Tell whether a slot's process lives; where births cannot be told, its number has to do."""
    if beat.pid <= 1 or birth(beat.pid) != beat.born:
        return False
    try:
        os.kill(beat.pid, 0)
    except OSError:
        return False
    return True


class Pulse:
    """This rank's slot; without a file, nothing is written."""

    def __init__(self, folder: Path | None = None, slot: int = 0, rank: int = 0) -> None:
        """Open slot `slot` (the local rank) of a node's file."""
        self._rank, self._attempt, self._first, self._step, self._work_s = rank, 0, 0, 0, 0.0
        self._phase = Phase.START
        self._pid, self._born = os.getpid(), birth(os.getpid()).encode()
        self._start = slot * _SLOT
        self._memory: mmap.mmap | None = None
        if folder:
            self._memory = _map(folder / FILE, self._start + _SLOT)
            _TICKS.pack_into(self._memory, self._start + _AT_TICKS, 0)
            self._write()
            threading.Thread(target=self._tick, name="pulse", daemon=True).start()

    @property
    def step(self) -> int | None:
        """The step being taken, None outside of steps."""
        return self._step if self._phase is Phase.STEP else None

    def begun(self, attempt: int, step: int) -> None:
        """This rank is part of an attempt, which begins at a step."""
        self._attempt, self._first = attempt, step
        self._write()

    def phase(self, phase: Phase) -> None:
        """Something else begins."""
        self._phase = phase
        self._write()

    def prepares(self, done: int) -> None:
        """This rank, or another, makes the cache of pictures; `done` changes as that goes on."""
        self._phase, self._step = Phase.PREPARE, done
        self._write()

    @contextmanager
    def meanwhile(self, phase: Phase) -> Iterator[None]:
        """Something else takes place within what is going on."""
        before, stage, passes = self._phase, 0, 0
        if self._memory is not None:
            stage = self._memory[self._start + _AT_STAGE]
            passes = _PASSES.unpack_from(self._memory, self._start + _AT_PASSES)[0]
        self.phase(phase)
        try:
            yield
        finally:
            self.phase(before)
            self.passes(passes)
            self.stage(Stage(stage))

    def stage(self, stage: Stage) -> None:
        """The next part of a step begins."""
        if self._memory is not None:
            self._memory[self._start + _AT_STAGE] = stage

    def passes(self, number: int) -> None:
        """A pass that involves all ranks is the next thing; see `Beat`."""
        if self._memory is not None:
            _PASSES.pack_into(self._memory, self._start + _AT_PASSES, number)

    def step_begins(self, step: int) -> None:
        """A step begins."""
        self._phase, self._step = Phase.STEP, step
        self._write()

    def worked(self, seconds: float) -> None:
        """Tell how long this rank worked in a step before it met the others; told with the next step's beginning."""
        self._work_s += 0.2 * (seconds - self._work_s) if self._work_s else seconds

    def _write(self) -> None:
        if self._memory is None:
            return
        body = _BODY.pack(
            *(_MAGIC, self._phase, self._rank, self._attempt, self._pid),
            *(self._first, self._step, self._work_s, self._born),
        )
        self._memory[self._start : self._start + _AT_CRC + 4] = body + _CRC.pack(zlib.crc32(body))
        self._memory[self._start + _AT_STAGE] = Stage.NONE
        self.passes(0)

    def _tick(self) -> None:
        assert self._memory is not None
        pause, ticks = threading.Event(), 0
        while not pause.wait(TICK_S):
            ticks += 1
            _TICKS.pack_into(self._memory, self._start + _AT_TICKS, ticks)


def _map(path: Path, at_least: int) -> mmap.mmap:
    """Map a file that is made as long as needed; other ranks of the node map it too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(fd, 0, at_least)  # never shrinks it: another rank may be making it longer right now
        return mmap.mmap(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)

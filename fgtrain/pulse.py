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
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

FILE = "pulse"
TICK_S = 1.0
_SLOT = 128
_BODY = struct.Struct("<4sHHIIQQQd16s")  # magic, phase, stage, rank, attempt, pid, step, ticks, work_s, boot-time token
_MAGIC = b"fgp1"


class Phase(IntEnum):
    """What a rank is about."""

    START = 0
    RESTORE = 1
    STEP = 2
    EVALUATE = 3
    FINISH = 4


class Stage(IntEnum):
    """Where in a step a rank is: nowhere yet, waiting for pictures, computing, exchanging, updating."""

    NONE = 0
    LOAD = 1
    COMPUTE = 2
    EXCHANGE = 3
    UPDATE = 4


class Beat(NamedTuple):
    """One slot. `step` is the one being taken, from 0; `work_s` its work before the exchange, as of a micro-batch.

    `born` tells the process from a later one with its number.
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


def encode(beat: Beat) -> bytes:
    """Return a slot's bytes."""
    body = _BODY.pack(
        *(_MAGIC, beat.phase, beat.stage, beat.rank, beat.attempt, beat.pid, beat.step, beat.ticks, beat.work_s),
        beat.born.encode()[:16],
    )
    return (body + struct.pack("<I", zlib.crc32(body))).ljust(_SLOT, b"\0")


def decode(data: bytes) -> list[Beat]:
    """Return the slots of a pulse file that are whole; one that is just being written is passed over."""
    return [b for i in range(len(data) // _SLOT) if (b := _decode_slot(i, data[i * _SLOT : (i + 1) * _SLOT]))]


def _decode_slot(slot: int, data: bytes) -> Beat | None:
    body = data[: _BODY.size]
    (crc,) = struct.unpack_from("<I", data, _BODY.size)
    if crc != zlib.crc32(body) or not body.startswith(_MAGIC):
        return None
    _, phase, stage, rank, attempt, pid, step, ticks, work_s, born = _BODY.unpack(body)
    return Beat(slot, Phase(phase), Stage(stage), rank, attempt, pid, step, ticks, work_s, born.rstrip(b"\0").decode())


def birth(pid: int) -> str:
    """Return when a process began, in the kernel's ticks since boot; empty where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:  # Source of the field's number: proc(5), 22 counted from the process's ID
        return ""


class Pulse:
    """This rank's slot; without a file, nothing is written."""

    def __init__(self, folder: Path | None = None, slot: int = 0, rank: int = 0) -> None:
        """Open slot `slot` (the local rank) of a node's file."""
        self._beat = Beat(slot, Phase.START, Stage.NONE, rank, 0, os.getpid(), 0, 0, 0.0, birth(os.getpid()))
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None
        if folder:
            self._memory = _map(folder / FILE, (slot + 1) * _SLOT)
            self._write()
            threading.Thread(target=self._tick, name="pulse", daemon=True).start()

    @property
    def step(self) -> int | None:
        """The step being taken, None outside of steps."""
        return self._beat.step if self._beat.phase is Phase.STEP else None

    def begun(self, attempt: int) -> None:
        """This rank is part of an attempt."""
        self._set(self._beat._replace(attempt=attempt))

    def phase(self, phase: Phase) -> None:
        """Something else begins."""
        self._set(self._beat._replace(phase=phase, stage=Stage.NONE))

    def stage(self, stage: Stage) -> None:
        """The next part of a step begins."""
        self._set(self._beat._replace(stage=stage))

    def step_begins(self, step: int) -> None:
        """A step begins."""
        self._set(self._beat._replace(phase=Phase.STEP, stage=Stage.LOAD, step=step))

    def worked(self, seconds: float) -> None:
        """Tell how long this rank worked in this step before it met the others; told with the next beat."""
        old = self._beat.work_s
        self._beat = self._beat._replace(work_s=old + 0.2 * (seconds - old) if old else seconds)

    def _set(self, beat: Beat) -> None:
        if self._memory is None:
            self._beat = beat
            return
        with self._lock:
            self._beat = beat._replace(ticks=self._beat.ticks)
            self._write()

    def _write(self) -> None:
        assert self._memory is not None
        start = self._beat.slot * _SLOT
        self._memory[start : start + _SLOT] = encode(self._beat)

    def _tick(self) -> None:
        pause = threading.Event()
        while not pause.wait(TICK_S):
            with self._lock:
                self._beat = self._beat._replace(ticks=self._beat.ticks + 1)
                self._write()


def _map(path: Path, at_least: int) -> mmap.mmap:
    """Map a file that is made as long as needed; other ranks of the node map it too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(fd).st_size < at_least:
            os.ftruncate(fd, at_least)
        return mmap.mmap(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)

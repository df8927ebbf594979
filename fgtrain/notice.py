"""What a node has been told of its end, and the flag by which its ranks learn of it. Light.

The flag is a file of the node's folder, `notice.json`. Whoever hears of a notice (the agent a signal, its attendant the
cloud) raises it; each rank looks at it between steps; the ranks agree on what to do when they exchange gradients.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from fgtrain.parts import from_json, to_json

LEAD_S = 150.0
"""How long before its end a node leaves, if it was told earlier. More than the two minutes of an AWS notice, so that
this one is obeyed at once; less than the quarter of an hour of an Azure reboot, most of which is spent training."""

LEAVES = "leaves: its node was told to"
"""What the agent of a node that leaves says in its log."""

_LOOK_S = 0.1


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a node was told of its future.

    `source` names the adapter, `what` says it in words. The same `id`: the same notice, told again. `loss`: the node
    goes; otherwise it is only more likely to. Times in Unix seconds; `deadline` None: nobody knows.
    """

    source: str
    what: str
    id: str
    loss: bool
    time: float
    deadline: float | None = None


class NoticeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A notice in the store, `notices/<node>-<milliseconds>-<hash>.json`: for whoever finds a replacement."""

    node: str
    notice: Notice

    @property
    def name(self) -> str:
        """The object's name within its run; two notices may come in one answer."""
        told = hashlib.sha256(f"{self.notice.source} {self.notice.id}".encode()).hexdigest()[:6]
        return f"notices/{self.node}-{self.notice.time * 1000:.0f}-{told}.json"


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """What the flag says: take a snapshot, and whether to leave then. `time`: since when, in Unix seconds."""

    leave: bool
    time: float
    notice: Notice


def leave_at(notice: Notice) -> float | None:
    """Return when (Unix seconds) the node should leave; None if it need not. Pure."""
    if not notice.loss:
        return None
    if notice.deadline is None:
        return notice.time
    return max(notice.time, notice.deadline - LEAD_S)


def sooner(notice: Notice, before: Notice) -> bool:
    """Whether a notice puts the end of the node earlier than one `before` with the same id did. Pure."""
    return notice.deadline is not None and before.deadline is not None and notice.deadline < before.deadline


def spell(node: str, notice: Notice, now: float) -> str:
    """Return a notice as a line for the user. Pure."""
    line = f"{node}: notice from {notice.source}: {notice.what}"
    if notice.deadline is not None:
        line += f", in {max(0.0, notice.deadline - now):.0f} s"
    due = leave_at(notice)
    if due is None:
        return f"{line}; an early snapshot, and on"
    if due > now:
        return f"{line}; an early snapshot now, and it leaves in {due - now:.0f} s"
    return f"{line}; a snapshot, then it leaves"


class Flag:
    """The flag of one node."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "notice.json"

    def lower(self) -> None:
        """Begin anew: whoever was told that this node goes is gone."""
        self._file.unlink(missing_ok=True)

    def raise_(self, notice: Notice, *, leave: bool, now: float) -> None:
        """Ask the node's ranks for a snapshot, and to leave if `leave`; who was asked to leave stays asked."""
        before = self.read()
        if before and before.leave:
            return
        new = self._file.with_name(f"notice-{uuid.uuid4().hex}.tmp")
        new.write_bytes(to_json(Raised(leave=leave, time=now, notice=notice)))
        new.replace(self._file)

    def read(self) -> Raised | None:
        """Return what the flag says; None if it is not raised."""
        try:
            return from_json(self._file.read_bytes(), Raised)
        except (OSError, msgspec.DecodeError):
            return None

    @property
    def leaves(self) -> bool:
        """Whether the node has been asked to leave."""
        raised = self.read()
        return raised is not None and raised.leave

    def version(self) -> int:
        """Return a number that changes when the flag is raised; 0 if it never was. Costs one `stat`."""
        try:
            return os.stat(self._file).st_mtime_ns  # noqa: PTH116 (half the time of Path.stat, between steps)
        except OSError:
            return 0


class Watch:
    """One rank's eye on the flag: cheap enough for every step."""

    def __init__(self, flag: Flag, clock: Callable[[], float] = time.monotonic) -> None:
        self._flag, self._clock = flag, clock
        self._next = 0.0
        self._version = 0
        self._began = time.time()
        self.leave = False
        self._save = False

    def look(self) -> None:
        """Look at the flag, unless that was done a moment ago."""
        now = self._clock()
        if now < self._next or self.leave:
            return
        self._next = now + _LOOK_S
        version = self._flag.version()
        if version == self._version:
            return
        self._version = version
        if raised := self._flag.read():
            self.leave = raised.leave
            self._save = not raised.leave and raised.time >= self._began  # an older one was for an earlier attempt

    def take_save(self) -> bool:
        """Tell, once for each time that the flag was raised, whether an early snapshot is asked for."""
        self.look()
        save, self._save = self._save, False
        return save

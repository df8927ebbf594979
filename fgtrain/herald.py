"""What becomes of a notice: ranks, user and store learn of it, and in time the node leaves. Light."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fgtrain.errors import FglaunchError
from fgtrain.notice import Flag, Notice, NoticeRecord, leave_at, sooner, spell
from fgtrain.parts import from_json, to_json
from fgtrain.runstore import RunStore

Key = tuple[str, str]
"""A notice's source and id."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """`told.json` in a node's folder: what each watch said when it last could; `boot`: of which machine."""

    boot: str
    told: dict[str, tuple[Notice, ...]]


class Memory:
    """What attendants of a node hand on: who says "in an hour" says so again, later, to one that was started again."""

    def __init__(self, folder: Path, boot: str | None = None) -> None:
        self._file, self._boot = folder / "told.json", _this_boot() if boot is None else boot

    def read(self) -> dict[str, tuple[Notice, ...]]:
        """Return what was written since this machine was booted; another machine may have the folder of one before."""
        try:
            found = from_json(self._file.read_bytes(), Told)
        except (OSError, msgspec.DecodeError):
            return {}
        return found.told if found.boot == self._boot else {}

    def write(self, told: dict[str, tuple[Notice, ...]]) -> None:
        """Replace what is there."""
        new = self._file.with_suffix(".tmp")
        new.write_bytes(to_json(Told(boot=self._boot, told=told)))
        new.replace(self._file)


class Herald:
    """Passes on what a node is told: to its ranks by the flag, to the user as an event, to the store as a record."""

    def __init__(self, runs: RunStore, folder: Path, node: str, clock: Callable[[], float] = time.time) -> None:
        self._runs, self._folder, self._node, self._clock = runs, folder, node, clock
        self._flag = Flag(folder)
        self._known: dict[Key, Notice] = {}
        self._memory = Memory(folder)
        self._told = self._memory.read()  # what each watch said when it last could
        self._unwritten: deque[NoticeRecord] = deque()

    def hear(self, watch: str, said: Sequence[Notice]) -> None:
        """Take in all that a watch is told now: what is new or nearer is passed on, what is told no more is off."""
        before = {_key(notice): notice for notice in self._told.get(watch, ())}
        told = {_key(notice): _first(notice, before.get(_key(notice))) for notice in said}
        for notice in told.values():
            self._take(notice)
        for key in before.keys() - told.keys():
            self._call_off(before[key])
        if told != before:
            self._told[watch] = tuple(told.values())
            self._memory.write(self._told)

    def _take(self, notice: Notice) -> None:
        before = self._known.get(_key(notice))
        if before is None or sooner(notice, before):
            self._pass_on(notice)

    def tick(self) -> None:
        """Ask the ranks to leave when that has become due, and take up what the agent was told. Asks no store."""
        now, raised = self._clock(), self._flag.read()
        if raised and raised.leave:
            self._take(raised.notice)  # a signal: the agent raised the flag itself
        elif due := [n for n in self._known.values() if _is_due(n, now)]:
            self._flag.raise_(due[0], leave=True, now=now)
            self._event(f"{self._node}: it leaves now ({due[0].what})")

    def record(self) -> None:
        """Write to the store what it has not taken yet. For a thread of its own: the store may hang."""
        while self._unwritten:
            try:
                self._runs.write(self._unwritten[0].name, self._unwritten[0])
            except FglaunchError as error:
                print(f"notice not recorded: {error}", flush=True)
                return
            self._unwritten.popleft()

    @property
    def leaving(self) -> Notice | None:
        """The notice because of which the node leaves, if it does."""
        raised = self._flag.read()
        return raised.notice if raised and raised.leave else None

    def _pass_on(self, notice: Notice) -> None:
        now = self._clock()
        self._flag.raise_(notice, leave=_is_due(notice, now), now=now)
        self._known[_key(notice)] = notice
        self._event(spell(self._node, notice, now))
        self._unwritten.append(NoticeRecord(node=self._node, notice=notice))

    def _call_off(self, notice: Notice) -> None:
        if self._flag.leaves:
            return
        self._known.pop(_key(notice), None)
        if notice.loss:
            self._event(f"{self._node}: {notice.source} has called it off: {notice.what}; it stays")

    def _event(self, text: str) -> None:
        line = json.dumps({"event": "note", "time": self._clock(), "text": text}, ensure_ascii=False) + "\n"
        with (self._folder / "events.jsonl").open("ab", buffering=0) as events:  # one write: others write here too
            events.write(line.encode())


def _key(notice: Notice) -> Key:
    return notice.source, notice.id


def _first(notice: Notice, before: Notice | None) -> Notice:
    """Return which of two tellings of a notice holds: the first, unless the end has come nearer since."""
    return notice if before is None or sooner(notice, before) else before


def _this_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux: no cloud's machine


def _is_due(notice: Notice, now: float) -> bool:
    due = leave_at(notice)
    return due is not None and due <= now

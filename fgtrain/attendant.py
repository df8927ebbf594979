"""What runs beside a node's agent: `python -m fgtrain.attendant STORE RUN FOLDER NODE`, started by it. Light.

It ships the node's logs and watches for notices of its end. It outlives the agent by moments, so that the last lines
before a crash arrive, and nothing waits for it: a store or a metadata service that hangs is its own trouble.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fgtrain import notices
from fgtrain.departure import ENDED
from fgtrain.errors import FglaunchError
from fgtrain.logshipping import Shipper
from fgtrain.notice import Flag, Notice, NoticeRecord, leave_at, spell
from fgtrain.notices import Source
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store

LINGER_S = 10.0
"""How long it may go on after the agent's end."""

_TICK_S = 0.5
_NICENESS = 10  # training goes first
_RETRY_S = (1.0, 60.0)  # after a metadata service failed: from, to
_BROKEN = (OSError, ValueError, KeyError, http.client.HTTPException)


class Herald:
    """Passes on what a node is told: to its ranks by the flag, to the user as an event, to the store as a record."""

    def __init__(self, runs: RunStore, folder: Path, node: str, clock: Callable[[], float] = time.time) -> None:
        self._runs, self._folder, self._node, self._clock = runs, folder, node, clock
        self._flag = Flag(folder)
        self._known: set[tuple[str, str]] = set()
        self._later: list[Notice] = []
        self._unwritten: list[NoticeRecord] = []

    def hear(self, notice: Notice) -> None:
        """Take in what some source says; what was said before is no news."""
        if (notice.source, notice.id) in self._known:
            return
        self._known.add((notice.source, notice.id))
        now, due = self._clock(), leave_at(notice)
        self._flag.raise_(notice, leave=due is not None and due <= now, now=now)
        if due is not None and due > now:
            self._later.append(notice)
        self._event(spell(self._node, notice, now))
        self._unwritten.append(NoticeRecord(node=self._node, notice=notice))

    def tick(self) -> None:
        """Do what has become due: ask the ranks to leave, write records that the store would not take before."""
        now = self._clock()
        if raised := self._flag.read():
            self.hear(raised.notice)  # a signal: the agent raised the flag itself
        for notice in [n for n in self._later if (leave_at(n) or 0.0) <= now]:
            self._later.remove(notice)
            self._flag.raise_(notice, leave=True, now=now)
            self._event(f"{self._node}: it leaves now ({notice.what})")
        while self._unwritten:
            try:
                self._runs.write(self._unwritten[0].name, self._unwritten[0])
            except FglaunchError as error:
                print(f"notice not recorded: {error}", flush=True)
                return
            self._unwritten.pop(0)

    @property
    def leaving(self) -> Notice | None:
        """The notice because of which the node leaves, if it does."""
        raised = self._flag.read()
        return raised.notice if raised and raised.leave else None

    def _event(self, text: str) -> None:
        line = json.dumps({"event": "note", "time": self._clock(), "text": text}, ensure_ascii=False) + "\n"
        with (self._folder / "events.jsonl").open("ab", buffering=0) as events:  # one write: others write here too
            events.write(line.encode())


def listen(watch: Callable[[], list[Notice]], hear: Callable[[Notice], None], pause: Callable[[float], None]) -> None:
    """Pass on what one watch says, for ever; a service that fails is asked again ever more rarely."""
    retry_s, said = _RETRY_S[0], ""
    while True:
        try:
            for notice in watch():
                hear(notice)
            retry_s, said = _RETRY_S[0], ""
        except _BROKEN as error:
            if f"{error}" != said:
                said = f"{error}"
                print(f"no word from the metadata service: {type(error).__name__}: {error}", flush=True)
            pause(retry_s)
            retry_s = min(_RETRY_S[1], 2 * retry_s)


def main() -> None:
    """Work until the agent is gone, and a little longer."""
    parser = argparse.ArgumentParser(prog="fgtrain.attendant")
    parser.add_argument("store", help="URL of the store")
    parser.add_argument("run", help="name of the run")
    parser.add_argument("folder", type=Path, help="this node's working folder")
    parser.add_argument("node", help="this node's name")
    args = parser.parse_args()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the agent's business; this ends when the agent does
        signal.signal(sig, signal.SIG_IGN)
    os.nice(_NICENESS)
    runs = RunStore(open_store(args.store), args.run)
    shipper = Shipper(runs, args.folder, args.node, start_ms=int(time.time() * 1000))
    herald = Herald(runs, args.folder, args.node)
    told: queue.SimpleQueue[Notice | bool] = queue.SimpleQueue()
    sources = _sources(args.node)
    for watch in (w for s in sources for w in s.watches):
        threading.Thread(target=listen, args=(watch, told.put, time.sleep), daemon=True).start()
    threading.Thread(target=_wait_for_the_end, args=(told,), daemon=True).start()
    ended = _attend(shipper, herald, told)
    _see_off(shipper, herald, sources if ended else [])
    os._exit(0)  # threads may hang in a request


def _sources(node: str) -> list[Source]:
    try:
        return notices.find(notices.this_machine(node))
    except FglaunchError as error:  # the agent has said so too, and ended
        print(error, flush=True)
        return []


def _wait_for_the_end(told: queue.SimpleQueue[Notice | bool]) -> None:
    """Standard input is a pipe whose other end the agent holds: it closes when the agent ends, or begins anew."""
    agent = os.getppid()
    last_word = sys.stdin.buffer.read()
    told.put(last_word == ENDED or os.getppid() != agent)


def _attend(shipper: Shipper, herald: Herald, told: queue.SimpleQueue[Notice | bool]) -> bool:
    """Work until the agent is gone; tells whether it ended, or only begins anew in place."""
    said = ""
    while True:
        try:
            notice = told.get(timeout=_TICK_S)
            if isinstance(notice, bool):
                return notice
            herald.hear(notice)
        except queue.Empty:
            pass
        except OSError as error:  # a full disk: nothing that can be done here
            print(f"notice not passed on: {error}", flush=True)
        herald.tick()
        shipper.tick()
        if shipper.failure != said:
            said = shipper.failure
            print(f"logs are not shipped: {said}" if said else "logs are shipped again", flush=True)


def _see_off(shipper: Shipper, herald: Herald, sources: list[Source]) -> None:
    """The agent is gone: what its signals meant, the last lines, and word to those `sources` that the node may go."""
    threading.Timer(LINGER_S, os._exit, (1,)).start()
    leaving = herald.leaving
    herald.tick()
    shipper.finish(LINGER_S / 2)
    for source in sources:
        if leaving and source.name == leaving.source:
            try:
                source.left(leaving)
            except _BROKEN as error:
                print(f"not acknowledged: {error}", flush=True)


if __name__ == "__main__":
    main()

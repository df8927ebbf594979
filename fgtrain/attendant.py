"""What runs beside a node's agent: `python -m fgtrain.attendant STORE RUN FOLDER NODE`, started by it. Light.

It ships the node's logs and watches for notices of its end. It outlives the agent by moments, so that the last lines
before a crash arrive, and nothing waits for it: a store or a metadata service that hangs is its own trouble. Each has
threads of its own; the main one asks neither, so the node's ranks learn of a notice at once.
"""

from __future__ import annotations

import argparse
import http.client
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
from fgtrain.herald import Herald
from fgtrain.logshipping import Shipper
from fgtrain.notice import Notice
from fgtrain.notices import Source
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store

LINGER_S = 10.0
"""How long it may go on after the agent's end."""

Told = queue.SimpleQueue[tuple[str, list[Notice]] | bool | Exception]
"""What comes to the attendant: all that a watch, by its name, is told now; or that the agent is gone, see `attend`; or
why other work here cannot go on."""

_TICK_S = 0.5
_NICENESS = 10  # training goes first
_RETRY_S = (1.0, 60.0)  # after a metadata service failed: from, to
_BROKEN = (OSError, ValueError, KeyError, http.client.HTTPException)


def listen(
    watch: Callable[[], list[Notice]], hear: Callable[[list[Notice]], None], pause: Callable[[float], None]
) -> None:
    """Pass on all that one watch says each time, for ever; a service that fails is asked again ever more rarely."""
    retry_s, said = _RETRY_S[0], ""
    while True:
        try:
            hear(watch())
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
    told: Told = queue.SimpleQueue()
    sources = _sources(args.node)
    for source in sources:
        for number, watch in enumerate(source.watches):
            _start(watch, f"{source.name}-{number}", told)
    threading.Thread(target=_wait_for_the_end, args=(told,), daemon=True).start()
    work = store_work(shipper, herald, told)
    ended = attend(herald, told)
    threading.Timer(LINGER_S, os._exit, (1,)).start()
    see_off(herald, work, sources if ended else [])
    os._exit(0)  # threads may hang in a request


def _start(watch: Callable[[], list[Notice]], name: str, told: Told) -> None:
    def hear(said: list[Notice]) -> None:
        told.put((name, said))

    threading.Thread(target=listen, args=(watch, hear, time.sleep), daemon=True).start()


def _sources(node: str) -> list[Source]:
    try:
        return notices.find(notices.this_machine(node))
    except FglaunchError as error:  # the agent has said so too, and ended
        print(error, flush=True)
        return []


def _wait_for_the_end(told: Told) -> None:
    """Standard input is a pipe whose other end the agent holds: it closes when the agent ends, or begins anew."""
    agent = os.getppid()
    last_word = sys.stdin.buffer.read()
    told.put(last_word == ENDED or os.getppid() != agent)


class StoreWork:
    """One kind of work with the store, in a thread of its own, as the store may hang: over and over, then the last."""

    def __init__(self, do: Callable[[], object], last: Callable[[], object], told: Told) -> None:
        self._do, self._last, self._told = do, last, told
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.wait(_TICK_S):
                self._do()
            self._last()
        except Exception as error:  # a defect: `attend` raises it, and the agent starts another attendant
            self._told.put(error)

    def finish(self) -> None:
        """Do the last; `join` waits for it."""
        self._over.set()

    def join(self, until: float) -> None:
        """Wait for the last of it, no longer than until then (`time.monotonic`)."""
        self._thread.join(max(0.0, until - time.monotonic()))


def store_work(shipper: Shipper, herald: Herald, told: Told) -> list[StoreWork]:
    """Begin to ship logs and to record notices; neither waits for the other."""
    said = ""

    def ship() -> None:
        nonlocal said
        shipper.tick()
        if shipper.failure != said:
            said = shipper.failure
            print(f"logs are not shipped: {said}" if said else "logs are shipped again", flush=True)

    shipping = StoreWork(ship, lambda: shipper.finish(LINGER_S / 2), told)
    return [StoreWork(herald.record, herald.record, told), shipping]


def attend(herald: Herald, told: Told) -> bool:
    """Pass on what is told until the agent is gone; tells whether it ended, or only begins anew in place."""
    while True:
        try:
            word = told.get(timeout=_TICK_S)
            if isinstance(word, bool):
                return word
            if isinstance(word, Exception):
                raise word
            herald.hear(*word)
        except queue.Empty:
            pass
        except OSError as error:  # a full disk: nothing that can be done here
            print(f"notice not passed on: {error}", flush=True)
        herald.tick()


def see_off(herald: Herald, work: list[StoreWork], sources: list[Source]) -> None:
    """The agent is gone: what its signals meant, the last lines, and word to those `sources` that the node may go.

    That word, which may end the machine, waits for the store half of `LINGER_S`; what hangs longer has the other half.
    """
    began = time.monotonic()
    leaving = herald.leaving
    herald.tick()
    for part in work:
        part.finish()
    for part in work:
        part.join(began + LINGER_S / 2)
    for source in sources:
        if leaving and source.name == leaving.source:
            try:
                source.left(leaving)
            except _BROKEN as error:
                print(f"not acknowledged: {error}", flush=True)
    for part in work:
        part.join(began + LINGER_S)


if __name__ == "__main__":
    main()

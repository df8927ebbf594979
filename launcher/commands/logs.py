"""`fglaunch logs RUN`: what ranks wrote, from any machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fgtrain.errors import StoreError, UserError
from fgtrain.logs import Stream
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.clusters import work_root
from launcher.foreground import node_folders, say
from launcher.logview import View, Wanted, title
from launcher.prepare import default_store
from launcher.status import existing_run, live_state, read_status

_POLL_S = 0.5


def call(args: argparse.Namespace) -> int:
    """Print the logs of one attempt (the newest unless told), a rank after the other; -f goes on with what is added."""
    if args.agents and (args.rank is not None or args.attempt is not None):
        raise UserError("--agents: an agent has neither rank nor attempt; leave --rank and --attempt out")
    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    view = View(runs, lambda: _folders_here(runs), Wanted(args.attempt, args.rank, args.agents))
    if not args.follow and not view.sources():
        raise UserError(f"{args.run}: no such logs (attempt {_or_any(args.attempt)}, rank {_or_any(args.rank)})")
    printer = _Printer()
    if not args.follow:
        printer.all(view)
        return 0
    while not _ended_before(runs, lambda: printer.all(view)):
        time.sleep(_POLL_S)
    return 0


def _folders_here(runs: RunStore) -> list[Path]:
    """Return the nodes' working folders that are this machine's: a path of another may mean something else here."""
    return [folder for folder in node_folders(runs) if folder.is_relative_to(work_root())]


def _ended_before(runs: RunStore, print_new: Callable[[], None]) -> bool:
    """Print what is new; tells whether the run had ended before that, so that there will be no more."""
    try:
        ended = live_state(read_status(runs), runs) != "running"
        print_new()
    except StoreError as error:
        say(f"the store does not answer: {error}")
        return False
    return ended


class _Printer:
    """Prints pieces of logs, and whose they are wherever that changes."""

    def __init__(self) -> None:
        self._last: Stream | None = None

    def all(self, view: View) -> None:
        for stream, data in view.new():
            self._print(stream, data)

    def _print(self, stream: Stream, data: bytes) -> None:
        if stream != self._last:
            print(f"--- {title(stream)}")
            self._last = stream
        sys.stdout.flush()
        sys.stdout.buffer.write(data)  # as bytes: a piece may end within a character
        sys.stdout.flush()


def _or_any(number: int | None) -> str:
    return "any" if number is None else str(number)

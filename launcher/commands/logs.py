"""`fglaunch logs RUN`: what ranks wrote, from any machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import ClusterError, Rented
from fgtrain.errors import StoreError, UserError
from fgtrain.logs import Stream
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import queued
from launcher.clusters import find_cluster, work_root
from launcher.foreground import node_folders, resume_command, say
from launcher.logview import View, Wanted, title
from launcher.prepare import default_store
from launcher.status import existing_run, live_state, read_status
from launcher.takeover import last_term

_POLL_S = 0.5
_LOOK_S = 15.0  # at what goes on without its supervisor


def call(args: argparse.Namespace) -> int:
    """Print the logs of one attempt (the newest unless told), a rank after the other; -f goes on with what is added."""
    if args.agents and (args.rank is not None or args.attempt is not None):
        raise UserError("--agents: an agent has neither rank nor attempt; leave --rank and --attempt out")
    runs = RunStore(open_store(args.store or default_store()), args.run)
    run = existing_run(runs)
    view = View(runs, lambda: _folders_here(runs), Wanted(args.attempt, args.rank, args.agents))
    if not args.follow and not view.sources():
        raise UserError(f"{args.run}: no such logs (attempt {_or_any(args.attempt)}, rank {_or_any(args.rank)})")
    printer = _Printer()
    if not args.follow:
        printer.all(view)
        return 0
    follower = Follower(runs, lambda: may_go_on(run, runs))
    while not _ended_before(follower, lambda: printer.all(view)):
        time.sleep(_POLL_S)
    return 0


def _folders_here(runs: RunStore) -> list[Path]:
    """Return the nodes' working folders that are this machine's: a path of another may mean something else here."""
    return [folder for folder in node_folders(runs) if folder.is_relative_to(work_root())]


def _ended_before(follower: Follower, print_new: Callable[[], None]) -> bool:
    """Print what is new; tells whether the run had ended before that, so that there will be no more."""
    try:
        ended = follower.ended()
        print_new()
    except StoreError as error:
        say(f"the store does not answer: {error}")
        return False
    return ended


class Follower:
    """Knows when there will be no more: a run that waits for its job, or has lost its supervisor, has not ended."""

    def __init__(
        self, runs: RunStore, may_go_on: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Follow a run; `may_go_on` is asked, now and then, whether it does so without its supervisor."""
        self._runs, self._may_go_on, self._clock = runs, may_go_on, clock
        self._said, self._next_look = "", 0.0

    def ended(self) -> bool:
        """Tell whether the run has ended; says, once each, why it is waited for.

        Raises:
            StoreError: the store does not answer.
        """
        state = live_state(read_status(self._runs), self._runs)
        if state == "lost":
            return self._lost()
        if state == "created":
            self._say(f"{self._runs.run} has not begun: waiting for it")
        return state not in ("created", "running", queued.WAITING)

    def _lost(self) -> bool:
        if self._clock() < self._next_look:
            return False
        self._next_look = self._clock() + _LOOK_S
        if self._may_go_on():
            self._say(f"{self._runs.run} has no supervisor any more; what its nodes may still write is waited for")
            return False
        self._say(f"{self._runs.run} has no supervisor, and nothing of it runs; `{resume_command(self._runs)}` goes on")
        return True

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            say(text)


def may_go_on(run: RunFile, runs: RunStore) -> bool:
    """Tell whether a run whose supervisor is gone may write more: as far as can be seen from here.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        if queued.read_job(runs):
            return queued.living(run, runs) is not None
        term = last_term(runs)
        if term is None:
            return False
        cluster = find_cluster(term.cluster, Path(run.cwd))
        if isinstance(cluster, Rented) and cluster.held(run.name) is None:
            return True  # another machine may have rented some
        return cluster.lasting and any(cluster.find(node, "agent") for node in term.nodes)
    except (ClusterError, UserError):  # nobody can be asked
        return True


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

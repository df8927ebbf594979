"""Nodes that do not outlive their supervisor for long: a thread that ends a node's work when its lease runs out.

On a cluster whose programs go on when the launching machine is gone, the supervisor's heartbeat in the store
(`status.json`) is the lease. When it has not changed for so long, or the run's time or money is used up and nobody
stops it, the agent is asked to stop (its workers take a last snapshot), and killed if it does not. Ages are measured by
this node's own clock, so clocks need not agree. A heartbeat of a supervisor that does not have this node in hand, since
it goes on with the run elsewhere, is no lease: it ends the node's work at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fgtrain.errors import FglaunchError, KeyMissing
from fgtrain.limits import Limits, Spend, exceeded
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store

LEASE = "FGLAUNCH_LEASE"
DEFAULT_S = 900.0
_GRACE_S = 60.0  # from asking to killing, and how late a limit is enforced from here: the supervisor comes first
_LOOKS = 8  # at the heartbeat, in the time of a lease


class Beat(msgspec.Struct, frozen=True):
    """What matters here of `status.json`. `since`: the first supervisor, by number, whose agents are still in hand."""

    updated: float
    state: str
    since: int = 0


class Heard(NamedTuple):
    """What the store said: the supervisor's heartbeat, the limits and what is spent."""

    beat: Beat | None
    limits: Limits
    spend: Spend


class Lease:
    """Decides when a node's work must end; times are in seconds of one clock that only rises. Pure."""

    def __init__(self, lease_s: float, now_s: float, term: int = 0) -> None:
        """Begin a lease now; `term` is the number of the supervisor that has started this node's work."""
        self._lease_s, self._heard_s, self._term = lease_s, now_s, term
        self._heard: Heard | None = None

    def verdict(self, heard: Heard | None, now_s: float) -> str | None:
        """Return why to end, if so.

        Args:
            heard: what the store said just now; None if it did not answer.
            now_s: the time.
        """
        if heard is not None and heard.beat is not None and heard.beat.since > self._term:
            return (
                f"supervisor {heard.beat.since} goes on with the run, and not with what supervisor {self._term} began"
            )
        if heard is not None and (self._heard is None or heard.beat != self._heard.beat):
            self._heard, self._heard_s = heard, now_s
        silent_s = now_s - self._heard_s
        if silent_s >= self._lease_s:
            return f"no word from the supervisor for {silent_s:.0f} s (the lease is {self._lease_s:.0f} s)"
        if self._heard is None or silent_s < _GRACE_S:
            return None
        spend = self._heard.spend
        cost = None if spend.cost is None else spend.cost + silent_s * spend.per_s
        return exceeded(
            msgspec.structs.replace(self._heard.limits, max_idle_hours=None),
            msgspec.structs.replace(spend, seconds=spend.seconds + silent_s, cost=cost),
        )


def variables(lease_s: float, store: str, run: str, term: int) -> dict[str, str]:
    """Return the environment that makes `watch` watch what the supervisor of this number starts."""
    return {LEASE: f"{lease_s:g} {term} {run} {store}"}


def superseded(runs: RunStore, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether another supervisor goes on with the run, and not with what this process belongs to.

    Such a process must take no attempt: it would void those that go on.

    Raises:
        StoreError: the store does not answer, or what it has cannot be read.
    """
    if LEASE not in environ:
        return False
    beat = read_beat(runs)
    return beat is not None and beat.since > int(environ[LEASE].split(" ")[1])


def watch(environ: Mapping[str, str] = os.environ) -> threading.Thread | None:
    """End this process when its lease runs out, if it has one: SIGTERM, and a while later SIGKILL."""
    if LEASE not in environ:
        return None
    seconds, term, run, store = environ[LEASE].split(" ", 3)
    lease = Lease(float(seconds), time.monotonic(), int(term))
    thread = threading.Thread(target=_watch, args=(lease, float(seconds), run, store), name="lease", daemon=True)
    thread.start()
    return thread


def _watch(lease: Lease, lease_s: float, run: str, store: str) -> None:
    runs, over = None, threading.Event()
    while True:
        try:
            runs = runs or RunStore(open_store(store), run)
            heard = hear(runs)
        except FglaunchError:
            heard = None  # silence is what the lease is about
        if reason := lease.verdict(heard, time.monotonic()):
            print(f"lease: {reason}: leaving", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait(_GRACE_S)
            os.kill(os.getpid(), signal.SIGKILL)
        over.wait(lease_s / _LOOKS)


def hear(runs: RunStore) -> Heard:
    """Read what the supervisor last said.

    Raises:
        StoreError: the store does not answer, or what it has cannot be read.
    """
    return Heard(read_beat(runs), read_limits(runs), read_spend(runs))


def read_beat(runs: RunStore) -> Beat | None:
    """Return the supervisor's last heartbeat, None if there was none."""
    try:
        return runs.read("status.json", Beat)
    except KeyMissing:
        return None


def read_limits(runs: RunStore) -> Limits:
    """Return a run's limits; none if it was given none."""
    try:
        return runs.read("limits.json", Limits)
    except KeyMissing:
        return Limits()


def read_spend(runs: RunStore) -> Spend:
    """Return what a run has cost so far; nothing if it never said."""
    try:
        return runs.read("spend.json", Spend)
    except KeyMissing:
        return Spend()

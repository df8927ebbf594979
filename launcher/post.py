"""The supervisor's post: that it holds the office, its heartbeat in status.json, and the record of what it started."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cluster import Node
from fgtrain.errors import StoreError
from fgtrain.runstore import RunStore
from launcher.clock import Clock
from launcher.fleet import Fleet
from launcher.heartbeat import Heartbeat
from launcher.outcome import EXIT_FENCED, Outcome
from launcher.status import HEARTBEAT_S, Status, process_token
from launcher.takeover import Office, Term, last_term


@contextmanager
def patience(note: Callable[[str], None]) -> Iterator[None]:
    """Go on when the store does not answer; it is told."""
    try:
        yield
    except StoreError as error:
        note(f"the store does not answer: {error}")


class Post:
    """Writes for others to read, as long as the office is held."""

    def __init__(self, runs: RunStore, office: Office, cluster: str, steps: int, clock: Clock) -> None:
        self._runs, self._office, self._cluster, self._steps, self._clock = runs, office, cluster, steps, clock
        self._next = 0.0
        self._lock = threading.Lock()
        self._over = False
        self._said: tuple[int, tuple[Node, ...]] = (0, ())
        self._beat_at = time.monotonic()
        self._heart: Heartbeat | None = None

    def rest(self) -> None:
        """Beat no more by itself."""
        if self._heart:
            self._heart.stop()

    def due(self) -> bool:
        """Tell whether it is time for a heartbeat."""
        return self._clock.now() >= self._next

    def beat(self, step: int, nodes: Sequence[Node]) -> bool:
        """Show that this supervisor lives; False, and nothing is written, if it is not the run's any more.

        From the first time on this goes on by itself while the supervisor is busy, until `rest`.

        Raises:
            StoreError: the store does not answer.
        """
        self._next = self._clock.now() + HEARTBEAT_S
        self._said, self._beat_at = (step, tuple(nodes)), time.monotonic()
        if self._heart is None:
            self._heart = Heartbeat(self.again, lambda: self._beat_at)
        return self.again()

    def again(self) -> bool:
        """Beat with what was said last; see `beat`."""
        with self._lock:
            if self._over or not self._office.held():
                return False
            self._write("running", *self._said)
            return True

    def write(self, outcome: Outcome, step: int, nodes: Sequence[Node]) -> None:
        """Write the last status.json.

        Raises:
            StoreError: the store does not answer.
        """
        with self._lock:
            self._over = True
            self._write(outcome.state, step, nodes, outcome.message, outcome.exit_code)

    def _write(
        self, state: str, step: int, nodes: Sequence[Node], message: str = "", exit_code: int | None = None
    ) -> None:
        status = Status(
            state=state,
            step=step,
            steps=self._steps,
            updated=self._clock.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            token=process_token(os.getpid()) or "",
            cluster=self._cluster,
            nodes=tuple(n.folder for n in nodes),
            message=message,
            exit_code=exit_code,
            since=self._office.term.since,
        )
        self._runs.write("status.json", status)

    def record(self, fleet: Fleet) -> None:
        """Note what runs, for a supervisor that goes on after this one.

        Raises:
            StoreError: the store does not answer.
        """
        meeting = fleet.stores
        self._office.record(
            endpoint=meeting.endpoint,
            place=meeting.place,
            nodes=tuple(fleet.nodes),
            agents=fleet.agent_pids(),
            probation=tuple(s.node.name for s in fleet.seats if s.probation is not None),
            gone=tuple(fleet.gone),
        )

    def inherit(self, earlier: Term) -> None:
        """Keep in mind that what an earlier supervisor has started is in this one's hands now; told with the rest."""
        self._office.inherit(earlier)

    def fenced(self) -> Outcome:
        """Return how this supervisor ends that holds the office no more."""
        newer = self.successor()
        who = f"supervisor {newer.number} on {newer.host}" if newer else "another supervisor"
        return Outcome(
            "fenced",
            EXIT_FENCED,
            f"{who} has taken over; `fglaunch attach {self._runs.run}` watches it",
            elsewhere=newer is not None and newer.cluster != self._cluster,
        )

    def adopted(self, agents: Mapping[str, int]) -> Mapping[str, int]:
        """Return those of this supervisor's agents that are another's now: process IDs by node."""
        newer = self.successor()
        if newer and newer.cluster != self._cluster:
            return {}
        return newer.agents if newer and newer.endpoint else agents

    def successor(self) -> Term | None:
        """Return the record of whoever holds the office now; None if this supervisor does, or that cannot be told."""
        try:
            newest = last_term(self._runs)
        except StoreError:
            return None
        return None if newest is None or newest.token == self._office.term.token else newest

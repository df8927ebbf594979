"""Meeting over a TCPStore: torchrun's `RendezvousHandler` by the steps of `fgtrain.membership`.

The state lies under one key and changes by compare-and-set. Every agent counts up a key of its own, its heartbeat. A
thread of each agent looks at state and heartbeats: whoever is silent too long is lost to the round, and the local
workers of a round that is over are killed at once, as they may hang in a collective towards a host that is gone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from fgtrain import membership
from fgtrain.board import Settings, find
from fgtrain.membership import Meeting, Member, Seats, Silence
from fgtrain.phases import tell_workers

EXIT_NO_STORE = 76
"""An agent's exit status: the store that agents meet in is gone, or was never there."""

CONNECT_S = 60.0
"""How long a store may take to start."""
JOIN_S = 600.0
"""How long an agent waits without enough nodes, or without a store: who could start one may be asleep."""
_POLL_S = 0.05
_LOOK_S = 0.1
_BEATS = 6  # heartbeats within the time after which silence is a loss
_GENTLE_S = 5.0
_JOIN_THREAD_S = 2.0


class Alarm(NamedTuple):
    """What to do when the local workers' round is over (called until they are gone); when nothing but a new life helps.

    That is when the store does not answer while the agent itself waits for an answer.
    """

    round_over: Callable[[], None]
    cut_off: Callable[[], None]


class Watch:
    """The thread that beats, looks for who fell silent, and ends the workers of a round that is over."""

    def __init__(self, settings: Settings, alarm: Alarm) -> None:
        """Connect and beat for the first time.

        Raises:
            NoStore, DistError: there is no store.
        """
        self._settings, self._alarm = settings, alarm
        self._board = find(settings.where, CONNECT_S)
        self._board.beat(settings.me.id)
        every = settings.detect_s / _BEATS
        self._silence = Silence(settings.detect_s, cap_s=2 * every)
        self._every_s, self._next_beat = every, 0.0
        self._lock = threading.Lock()
        self._round: int | None = None  # that local workers belong to
        self._over_since: float | None = None
        self.meeting = self._board.read()
        self.lost = False
        """Whether the store is gone."""
        self._answers = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="meeting", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def work_in(self, meeting: Meeting | None) -> None:
        """Say in which complete round local workers work; None: there are none."""
        with self._lock:
            self._round, self._over_since = (None, None) if meeting is None else (meeting.round, None)
            self.meeting = meeting or self.meeting

    def finished(self) -> None:
        """Stop: nothing that happens to the store or the others matters any more."""
        self._done.set()
        self.work_in(None)
        if not self.lost:  # else it may wait for an answer for long
            self._thread.join(_JOIN_THREAD_S)  # not to be caught by this process's end within an operation

    def _serve(self) -> None:
        try:
            while not self._done.wait(_LOOK_S):
                self._look()
        except Exception as error:
            if not self._done.is_set():
                self._done.set()
                self.lost = True
                say(f"the store that agents meet in is gone: {error}".splitlines()[0])
                self._end_workers()

    def _end_workers(self) -> None:
        """See local workers off, whose round went with its store."""
        while True:
            with self._lock:
                if self._round is None:
                    return
                self._alarm.round_over()
            time.sleep(_LOOK_S)

    def _look(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self._every_s
            self._board.beat(self._settings.me.id)
            self._miss(self._board.read())
        round_, meeting = self._round, self._board.read()
        self._answers += 1
        with self._lock:
            if self._round != round_:
                return  # what was read may be older than the round that has begun meanwhile
            self.meeting = meeting
            if self._is_over():
                self._alarm.round_over()

    def _miss(self, meeting: Meeting) -> None:
        """Strike out who has been silent too long."""
        others = {m.id: m.node for m in meeting.everyone() if m.id != self._settings.me.id}
        silent = self._silence.look(self._board.beats(list(others)), time.monotonic())
        if silent and not meeting.closed:
            nodes = ", ".join(sorted({others[id_] for id_ in silent}))
            why, silent_s = f"{nodes} silent for {max(silent.values()):.1f} s", max(silent.values())
            say(why)
            seats = self._settings.seats
            self._board.change(lambda m: membership.lose(m, silent, why, seats, round(silent_s, 2)))

    def _is_over(self) -> bool:
        """Tell whether local workers belong to a round that is over, and had their time to leave."""
        meeting = self.meeting
        if self._round is None or meeting.closed or (meeting.complete and meeting.round == self._round):
            return False
        now = time.monotonic()
        if self._over_since is None:
            self._over_since = now
            say(f"round {self._round} is over: {meeting.why}")
        return now - self._over_since >= (_GENTLE_S if meeting.gentle else 0.0)

    def _guard(self) -> None:
        """Notice that the store does not answer, while the other thread hangs in asking it."""
        answers, unanswered, looked = self._answers, 0.0, time.monotonic()
        while not self._done.wait(self._every_s):
            now = time.monotonic()
            passed, looked = min(now - looked, 2 * self._every_s), now
            unanswered = 0.0 if self._answers != answers else unanswered + passed
            answers = self._answers
            if unanswered >= self._settings.detect_s:
                self._done.set()
                say(f"cut off: no answer from the store that agents meet in for {unanswered:.1f} s")
                if self._round is None:  # the agent itself may wait for an answer
                    self._alarm.cut_off()
                self.lost = True
                self._end_workers()


class Rendezvous(RendezvousHandler):
    """One agent's part in the meeting."""

    def __init__(self, settings: Settings, alarm: Alarm, patience_s: float = CONNECT_S) -> None:
        """Connect; with `patience_s`, to a store that may have to be started first.

        Raises:
            NoStore, DistError: there is no store.
        """
        self._settings, self._alarm = settings, alarm
        self._board = find(settings.where, patience_s)
        self._watch = Watch(settings, alarm)
        self.noticed = time.time()
        """When the agent noticed that the last round is over (Unix seconds); at first, when it started."""
        self._stopped = self.noticed
        self.left = False
        """Whether the last workers were asked to leave, and did."""

    @property
    def detect_s(self) -> float:
        """After how long silence is a loss, in seconds."""
        return self._settings.detect_s

    @property
    def use_agent_store(self) -> bool:
        """See base class: workers meet in the same store, under a name of their round's own."""
        return True

    def get_backend(self) -> str:
        """See base class."""
        return "fglaunch"

    def get_run_id(self) -> str:
        """See base class."""
        return self._settings.run

    def goes_on_without(self) -> bool:
        """Tell whether others work, in a round that this agent has no part in."""
        meeting = self._board.read()
        return meeting.complete and not meeting.closed and not meeting.has(self._settings.me.id)

    def next_rendezvous(self) -> RendezvousInfo:
        """See base class; workers are told their round, and when what happened, by the environment."""
        self._stopped = time.time()
        self._watch.work_in(None)
        meeting = self._meet()
        self._watch.work_in(meeting)
        tell_workers(meeting, noticed=self.noticed, stopped=self._stopped, met=time.time())
        rank = next(m.rank for m in meeting.members if m.id == self._settings.me.id)
        after = f" after {meeting.why}" if meeting.why else ""
        say(f"round {meeting.round}: node rank {rank} of {len(meeting.members)}{after}")
        return RendezvousInfo(
            PrefixStore(f"agents/{meeting.round}", self._board.store),
            rank,
            len(meeting.members),
            RendezvousStoreInfo(self._board.place.host, self._board.place.port),
        )

    def _meet(self) -> Meeting:
        """Wait for a complete round with this agent in it, in another store if the one that it knows is gone.

        Raises:
            NoStore: there was none for long.
            RendezvousTimeoutError, RendezvousClosedError: see `_take_part`.
        """
        while True:
            try:
                if self._watch.lost:
                    self._move()
                return self._take_part()
            except DistError as error:
                if not self._watch.lost:
                    say(f"the store that agents meet in is gone: {error}".splitlines()[0])
                    self._watch.lost = True

    def _move(self) -> None:
        """Go to the next store, and take along what was agreed on."""
        self._watch.finished()
        self._board = find(self._settings.where, JOIN_S, self._watch.meeting)
        self._watch = Watch(self._settings, self._alarm)
        say(f"agents meet at {self._board.place.host}:{self._board.place.port} now")

    def _take_part(self) -> Meeting:
        """Wait for a complete round with this agent in it.

        Raises:
            RendezvousTimeoutError: too few nodes came.
            RendezvousClosedError: the work is done.
        """
        me, seats = self._settings.me, self._settings.seats
        meeting = self._board.change(lambda m: membership.come(m, me, seats, left=self.left))
        deadline, seen, since = time.monotonic() + JOIN_S, meeting.members, time.monotonic()
        while True:
            if meeting.closed:
                raise RendezvousClosedError
            if meeting.complete and meeting.has(me.id):
                return meeting
            now = time.monotonic()
            if meeting.members != seen:
                seen, since = meeting.members, now
            if any(m.id == me.id for m in meeting.waiting):  # a spare waits as long as it takes: that is no loss
                deadline = now + JOIN_S
                self.noticed = self._stopped = time.time()
            if now > deadline:
                raise RendezvousTimeoutError(f"fewer than {seats.least} nodes within {JOIN_S:g} s")
            quiet = now - since >= self._settings.last_call_s
            meeting = self._board.change(partial(_go_on, me=me, seats=seats, quiet=quiet))
            if not (meeting.complete and meeting.has(me.id)):
                time.sleep(_POLL_S)

    def num_nodes_waiting(self) -> int:
        """See base class: how many the round has room for."""
        return max(0, membership.growth(self._watch.meeting, self._settings.seats))

    def is_closed(self) -> bool:
        """See base class."""
        return self._board.read().closed

    def set_closed(self) -> None:
        """See base class: the work is done."""
        self._watch.finished()
        with contextlib.suppress(DistError):  # then whoever still meets is told by the supervisor's end
            self._board.change(membership.close)

    def shutdown(self) -> bool:
        """See base class: take no further part; the others go on."""
        self._watch.finished()
        me, seats = self._settings.me, self._settings.seats
        try:
            self._board.change(lambda m: membership.lose(m, [me.id], f"{me.node} left", seats))
        except RuntimeError:
            return False
        return True


def _go_on(meeting: Meeting, *, me: Member, seats: Seats, quiet: bool) -> Meeting:
    """Stay in, come again if this agent was struck out meanwhile, and complete the round if that can be."""
    if meeting.complete and meeting.has(me.id):
        return meeting
    return membership.complete(membership.come(meeting, me, seats), seats, quiet=quiet)


def say(text: str) -> None:
    """Tell whoever reads the agent's log."""
    print(f"{time.strftime('%H:%M:%S')} agent {os.getpid()}: {text}", file=sys.stderr, flush=True)

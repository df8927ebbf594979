"""The uploader process of one rank: `python -m fgtrain.snapshot.uploader START`.

A process of its own keeps hashing and waiting for the network away from the training process's interpreter.
Orders come as JSON lines on standard input, reports go to standard output. It dies with its rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from fgtrain.errors import Corrupt, FglaunchError, StoreUnavailable
from fgtrain.lifeline import die_with_parent
from fgtrain.runstore import RunStore
from fgtrain.snapshot.protocol import (
    Abandon,
    Committed,
    Copied,
    Copy,
    Failed,
    GivenUp,
    Listening,
    Meet,
    Order,
    Persist,
    Quit,
    Report,
    Stored,
    encode,
)
from fgtrain.snapshot.replicate import Peer, Receiver, Sender
from fgtrain.snapshot.staged import Header, read_header
from fgtrain.snapshot.upload import Fenced, Uploader
from fgtrain.stores import open_store

_NICENESS = 10  # training goes first


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What an uploader is started with, as JSON in its first argument.

    `last` names the manifest that this attempt goes on from; `verified`: its chunks were all read. `inherited` holds
    chunks of another run's manifest that this run refers to. `memory` is the node's folder for copies of other nodes'
    shares, `host` this node's address, `port` where copies are expected (0: anywhere),
    `token` the job's secret ("": no copies are taken in). `abandoned`: the steps whose shares died with uploaders
    before this one, and which none of them has given up.
    """

    store: str
    run: str
    memory: str
    attempt: int
    rank: int
    parent: int
    last: str | None
    verified: bool
    host: str
    token: str
    port: int = 0
    inherited: tuple[str, ...] = ()
    abandoned: tuple[int, ...] = ()


def main() -> None:
    """Serve orders until told to quit, or until the rank's end of the pipe is closed."""
    start = msgspec.json.decode(sys.argv[1], type=Start)
    die_with_parent(parent=start.parent)
    for sig in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGUSR1,
    ):  # a rank that is asked to stop still wants its last snapshot stored
        signal.signal(sig, signal.SIG_IGN)
    os.nice(_NICENESS)
    receiver = Receiver(start.host, Path(start.memory), start.token, start.port) if start.token else None
    service = Service(lambda: make_uploader(start), start.rank)
    if receiver:
        service.say(Listening(receiver.port))
    service.abandon(start.abandoned, "its uploader process died")
    service.serve()
    if receiver:
        receiver.close()


def make_uploader(start: Start) -> Uploader:
    """Look up what an uploader goes on from.

    Raises:
        Corrupt, StoreError: the manifest cannot be read.
    """
    runs = RunStore(open_store(start.store), start.run)
    last = runs.manifest(start.last) if start.last else None
    chunks = frozenset(last.chunks()) if last else frozenset[str]()
    return Uploader(
        runs,
        Path(),  # each order says where its share is
        start.attempt,
        start.rank,
        last,
        trusted=chunks if start.verified else frozenset(),
        doubtful=frozenset(start.inherited) if start.verified else chunks | frozenset(start.inherited),
    )


class Service:
    """Takes orders, one share at a time; the other ranks learn of a commit when they store the next."""

    def __init__(self, make: Callable[[], Uploader], rank: int) -> None:
        self._make = make
        self._uploader: Uploader | None = None
        self._rank = rank
        self._heard = ""
        self._peer: Peer | None = None
        self._senders: dict[str, Sender] = {}  # by the folder that they send from

    def serve(self) -> None:
        """Work until the orders end."""
        for line in sys.stdin.buffer:
            match msgspec.json.decode(line, type=Order):
                case Quit():
                    return
                case Meet(peer=peer):
                    self._peer = peer
                case Copy() as order:
                    self.say(Copied(order.step, order.slot, self._copy(order)))
                case order:
                    self._answer(order)

    def abandon(self, steps: tuple[int, ...], reason: str) -> None:
        """Tell the committing rank not to wait for shares that nobody has any more."""
        if not steps:
            return
        with suppress(FglaunchError):  # the store is away, or the last manifest unreadable: the next order tells
            self._uploader = self._make()
            for step in steps:
                if self._uploader.give_up(step, reason):
                    self.say(GivenUp(step))

    def _copy(self, order: Copy) -> str:
        """Send a share to the peer; returns what went wrong."""
        try:
            if self._peer is None:
                raise Corrupt("there is no peer")
            header = _header(Path(order.folder), order.slot, order.step)
            sender = self._senders.setdefault(order.folder, Sender(self._peer, Path(order.folder)))
            sender.send(header)
        except FglaunchError as error:
            return str(error)
        return ""

    def _answer(self, order: Persist | Abandon) -> None:
        """Carry an order out; whatever happens, its rank hears of it."""
        slot = order.slot
        try:
            uploader = self._uploader = self._uploader or self._make()
            if isinstance(order, Abandon):
                raise StoreUnavailable(order.reason)
            started = time.monotonic()
            header = self._store(uploader, order)
            slot = ""  # once told that it is stored, the rank may put something else there
            if self._rank == 0:
                self.say(self._commit(uploader, header, started))
                uploader.clean(header.step)
            elif (last := uploader.last) and last.name != self._heard:
                self._heard = last.name
                self.say(Committed(last.step, last.name, 0, 0, 0.0))
        except FglaunchError as error:
            self._fail(order.step, slot, str(error), fenced=isinstance(error, Fenced))
        except Exception as error:  # never a silent end: the rank counts on an answer
            self._fail(order.step, slot, f"{type(error).__name__}: {error}")

    def _store(self, uploader: Uploader, order: Persist) -> Header:
        uploader.folder = Path(order.folder)
        header = _header(uploader.folder, order.slot, order.step)
        uploader.store_share(header, rehash=order.rehash)
        self.say(Stored(order.step, order.slot))
        return header

    def _fail(self, step: int, slot: str, reason: str, *, fenced: bool = False) -> None:
        self.say(Failed(step, slot, reason, fenced))
        if self._uploader and self._rank != 0:
            self._uploader.give_up(step, reason)

    def _commit(self, uploader: Uploader, header: Header, started: float) -> Committed:
        manifest = uploader.commit(header)
        seconds = round(time.monotonic() - started, 3)
        return Committed(manifest.step, manifest.name, manifest.bytes_new, manifest.bytes_shared, seconds)

    def say(self, report: Report) -> None:
        """Report to the rank."""
        sys.stdout.buffer.write(encode(report))
        sys.stdout.buffer.flush()


def _header(folder: Path, slot: str, step: int) -> Header:
    header = read_header(folder, slot)
    if header.step != step:
        raise Corrupt(f"slot {slot} does not hold step {step}")
    return header


if __name__ == "__main__":
    main()

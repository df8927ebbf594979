"""The uploader process of one rank: `python -m fgtrain.snapshot.uploader START`.

A process of its own keeps hashing and waiting for the network away from the training process's interpreter.
Orders come as JSON lines on standard input, reports go to standard output. It dies with its rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from fgtrain.errors import Corrupt, FglaunchError
from fgtrain.lifeline import die_with_parent
from fgtrain.runstore import RunStore
from fgtrain.snapshot.protocol import (
    Committed,
    Copied,
    Copy,
    Failed,
    Listening,
    Meet,
    Order,
    Persist,
    Quit,
    Report,
    Stored,
    encode,
)
from fgtrain.snapshot.replicate import Receiver, Sender
from fgtrain.snapshot.staged import Header, read_header
from fgtrain.snapshot.upload import Fenced, Uploader
from fgtrain.stores import open_store

_NICENESS = 10  # training goes first


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What an uploader is started with, as JSON in its first argument.

    `last` names the manifest that this attempt goes on from; `verified`: its chunks were all read. `inherited` holds
    chunks of another run's manifest that this run refers to. `host` is this node's address, `token` the job's secret.
    """

    store: str
    run: str
    folder: str
    attempt: int
    rank: int
    parent: int
    last: str | None
    verified: bool
    host: str
    token: str
    inherited: tuple[str, ...] = ()


def main() -> None:
    """Serve orders until told to quit, or until the rank's end of the pipe is closed."""
    start = msgspec.json.decode(sys.argv[1], type=Start)
    die_with_parent(parent=start.parent)
    for sig in (signal.SIGTERM, signal.SIGINT):  # a rank that is asked to stop still wants its last snapshot stored
        signal.signal(sig, signal.SIG_IGN)
    os.nice(_NICENESS)
    runs = RunStore(open_store(start.store), start.run)
    last = runs.manifest(start.last) if start.last else None
    chunks = frozenset(last.chunks()) if last else frozenset[str]()
    uploader = Uploader(
        runs,
        Path(start.folder),
        start.attempt,
        start.rank,
        last,
        trusted=chunks if start.verified else frozenset(),
        doubtful=frozenset(start.inherited) if start.verified else chunks | frozenset(start.inherited),
    )
    receiver = Receiver(start.host, Path(start.folder).parent, start.token)
    service = Service(uploader, Path(start.folder), start.rank)
    service.say(Listening(receiver.port))
    service.serve()
    receiver.close()


class Service:
    """Takes orders, one share at a time; the other ranks learn of a commit when they store the next."""

    def __init__(self, uploader: Uploader, folder: Path, rank: int) -> None:
        self._uploader = uploader
        self._folder = folder
        self._rank = rank
        self._heard = ""
        self._sender: Sender | None = None

    def serve(self) -> None:
        """Work until the orders end."""
        for line in sys.stdin.buffer:
            match msgspec.json.decode(line, type=Order):
                case Persist() as order:
                    self._persist(order)
                case Meet(peer=peer):
                    self._sender = Sender(peer, self._folder)
                case Copy() as order:
                    self._copy(order)
                case Quit():
                    return

    def _copy(self, order: Copy) -> None:
        header, reason = read_header(self._folder, order.slot), ""
        try:
            if header is None or header.step != order.step or self._sender is None:
                raise Corrupt(f"slot {order.slot} does not hold step {order.step}, or there is no peer")
            self._sender.send(header)
        except FglaunchError as error:
            reason = str(error)
        self.say(Copied(order.step, order.slot, reason))

    def _persist(self, order: Persist) -> None:
        started = time.monotonic()
        header = read_header(self._folder, order.slot)
        try:
            if header is None or header.step != order.step:
                raise Corrupt(f"slot {order.slot} does not hold step {order.step}")
            self._uploader.store_share(header, rehash=order.rehash)
            self.say(Stored(order.step, order.slot))
            if self._rank == 0:
                self.say(self._commit(header, started))
            elif (last := self._uploader.last) and last.name != self._heard:
                self._heard = last.name
                self.say(Committed(last.step, last.name, 0, 0, 0.0))
        except FglaunchError as error:
            self.say(Failed(order.step, order.slot, str(error), isinstance(error, Fenced)))
        except Exception as error:  # never a silent end: the rank counts on an answer
            self.say(Failed(order.step, order.slot, f"{type(error).__name__}: {error}", False))

    def _commit(self, header: Header, started: float) -> Committed:
        manifest = self._uploader.commit(header)
        seconds = round(time.monotonic() - started, 3)
        return Committed(manifest.step, manifest.name, manifest.bytes_new, manifest.bytes_shared, seconds)

    def say(self, report: Report) -> None:
        """Report to the rank."""
        sys.stdout.buffer.write(encode(report))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

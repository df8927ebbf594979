"""Copies of staged shares on another node, so that a node's loss costs no more than a worker's. Light.

Each rank's uploader serves a port. A rank sends every share that it stages to one rank of the next node, straight from
mapped memory; the receiver keeps the two newest, in its own node's folder, under the sender's rank: recovery finds them
where it looks anyway.

    -> one JSON line (`Parcel`), then the files' bytes     <- "ok" and a newline, once all is in place
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec

from fgtrain.errors import Corrupt, StoreUnavailable
from fgtrain.listener import listen_at
from fgtrain.snapshot import staged
from fgtrain.snapshot.memory import rank_folder
from fgtrain.snapshot.staged import Header

_TIMEOUT_S = 60.0
_BLOCK = 1 << 20
_OK = b"ok\n"


class Peer(msgspec.Struct, frozen=True):
    """Where to send shares."""

    host: str
    port: int
    token: str


class Parcel(msgspec.Struct, frozen=True):
    """What follows on the connection: files as (name, bytes), of a share with this header."""

    token: str
    slot: str
    header: Header
    files: tuple[tuple[str, int], ...]


class Sender:
    """Sends one rank's shares; what does not change is sent once."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self._peer = peer
        self._folder = folder
        self._sent_crc: dict[str, int] = {}
        self._turn = 0

    def send(self, header: Header) -> None:
        """Send a share.

        Raises:
            StoreUnavailable: the peer did not take it.
        """
        name = f"copy{self._turn % 2}"
        files, stretches = self._files(header, name)
        parcel = Parcel(
            self._peer.token,
            name,
            msgspec.structs.replace(
                header,
                stretches=stretches,
                crc32={n: header.crc32[own] for own, n, _ in files} | self._unchanged(header, files),
            ),
            tuple((n, b) for _, n, b in files),
        )
        try:
            self._deliver(parcel, [own for own, _, _ in files])
        except OSError as error:
            self._sent_crc.clear()
            raise StoreUnavailable(f"the copy of step {header.step} for another node: {error}") from error
        self._sent_crc |= {own: header.crc32[own] for own, _, _ in files}
        self._turn += 1

    def _files(self, header: Header, name: str) -> tuple[list[tuple[str, str, int]], tuple[staged.Stretch, ...]]:
        """Return (own name, name there, bytes) of the files to send, and the stretches with the names there."""
        files: dict[str, tuple[str, int]] = {}
        stretches = []
        for s in header.stretches:
            still = s.file == "frozen.bytes"
            there = s.file if still else f"{name}.bytes"
            stretches.append(msgspec.structs.replace(s, file=there))
            end = max(files.get(s.file, ("", 0))[1], s.offset + s.stop - s.start)
            if not still or self._sent_crc.get(s.file) != header.crc32[s.file]:
                files[s.file] = (there, end)
        return [(own, there, end) for own, (there, end) in files.items()], tuple(stretches)

    def _unchanged(self, header: Header, files: list[tuple[str, str, int]]) -> dict[str, int]:
        sent = {own for own, _, _ in files}
        return {f: crc for f, crc in header.crc32.items() if f == "frozen.bytes" and f not in sent}

    def _deliver(self, parcel: Parcel, own: list[str]) -> None:
        with socket.create_connection((self._peer.host, self._peer.port), timeout=_TIMEOUT_S) as to:
            to.sendall(msgspec.json.encode(parcel) + b"\n")
            for file, (_, bytes_) in zip(own, parcel.files, strict=True):
                with (self._folder / file).open("rb") as source:
                    to.sendfile(source, 0, bytes_)
            if to.recv(len(_OK)) != _OK:
                raise OSError("the peer refused it")


class Receiver:
    """Takes in other ranks' shares and keeps them in this node's folder."""

    def __init__(self, host: str, memory: Path, token: str, port: int = 0) -> None:
        """Listen at a port of this host, any if 0, and keep what comes below `memory`."""
        self._memory = memory
        self._token = token
        try:
            self._listener = listen_at(host, port)
        except OSError:  # somebody else has it by now
            self._listener = listen_at(host)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, name="copies", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection: socket.socket) -> None:
        connection.settimeout(_TIMEOUT_S)
        refused = (OSError, Corrupt, msgspec.DecodeError)
        with connection, contextlib.suppress(*refused), connection.makefile("rb") as source:
            parcel = msgspec.json.decode(source.readline(), type=Parcel)
            if hmac.compare_digest(parcel.token, self._token):
                self._keep(parcel, source)
                connection.sendall(_OK)

    def _keep(self, parcel: Parcel, source: BinaryIO) -> None:
        folder = rank_folder(self._memory, parcel.header.attempt, parcel.header.rank)
        folder.mkdir(parents=True, exist_ok=True)
        staged.remove_header(folder, parcel.slot)
        for name, bytes_ in parcel.files:
            if "/" in name or name.startswith("."):
                raise Corrupt(f"a file called {name}")
            _receive(source, folder / name, bytes_)
        staged.write_header(folder, parcel.slot, parcel.header)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def _receive(source: BinaryIO, file: Path, bytes_: int) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.truncate(bytes_)
        while bytes_ > 0:
            block = source.read(min(_BLOCK, bytes_))
            if not block:
                raise OSError("the connection broke off")
            out.write(block)
            bytes_ -= len(block)


def peer_of(rank: int, nodes: list[str]) -> int | None:
    """Return the rank that keeps a rank's copies: one of the next node, spread evenly; None if there is but one node.

    Args:
        rank: whose copies.
        nodes: the node of every rank.
    """
    order = list(dict.fromkeys(nodes))
    if len(order) < 2:
        return None
    there = order[(order.index(nodes[rank]) + 1) % len(order)]
    candidates = [r for r, n in enumerate(nodes) if n == there]
    place = [r for r, n in enumerate(nodes) if n == nodes[rank]].index(rank)
    return candidates[place % len(candidates)]

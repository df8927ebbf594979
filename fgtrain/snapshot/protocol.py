"""What a rank and its uploader say to each other, as JSON lines over a pipe. Light."""

from __future__ import annotations

from typing import Any

import msgspec

from fgtrain.snapshot.replicate import Peer


class Persist(msgspec.Struct, frozen=True, tag=True):
    """Upload the staged share in `slot` of `folder`.

    `rehash`: what should not have changed was staged anew, look at it again.
    """

    folder: str
    slot: str
    step: int
    rehash: bool = False


class Abandon(msgspec.Struct, frozen=True, tag=True):
    """This rank could not stage its share of `step`: tell the others, so that none waits for it."""

    step: int
    slot: str
    reason: str


class Copy(msgspec.Struct, frozen=True, tag=True):
    """Send the staged share in `slot` of `folder` to the peer."""

    folder: str
    slot: str
    step: int


class Listening(msgspec.Struct, frozen=True, tag=True):
    """The port at which this rank's uploader takes in other ranks' shares."""

    port: int


class Copied(msgspec.Struct, frozen=True, tag=True):
    """The peer has the share of `step`, or (with a reason) has not; the slot may be used again."""

    step: int
    slot: str
    reason: str


class Meet(msgspec.Struct, frozen=True, tag=True):
    """The peer to send copies to."""

    peer: Peer


class Stored(msgspec.Struct, frozen=True, tag=True):
    """This rank's share of `step` is stored and its slot may be used again."""

    step: int
    slot: str


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The snapshot of `step` is committed (rank 0 sees it happen, the others learn it later)."""

    step: int
    name: str
    bytes_new: int
    bytes_shared: int
    seconds: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The snapshot of `step` will not be committed; the slot may be used again. `fenced`: nor will any later one."""

    step: int
    slot: str
    reason: str
    fenced: bool


class GivenUp(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 has been told not to wait for the share of `step`, which died with an uploader before this one."""

    step: int


class Quit(msgspec.Struct, frozen=True, tag=True):
    """Finish what was asked for, then leave."""


Order = Persist | Abandon | Copy | Meet | Quit
Report = Stored | Committed | Failed | Copied | Listening | GivenUp


def encode(message: Any) -> bytes:
    """Encode one line."""
    return msgspec.json.encode(message) + b"\n"

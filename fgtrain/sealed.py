"""Sealed bytes: the SHA-256 of what follows in the first line, so that what was altered or cut is never believed."""

from __future__ import annotations

import hashlib

from fgtrain.errors import Corrupt


def seal(body: bytes) -> bytes:
    """Put the checksum before the body."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(data: bytes, what: str) -> bytes:
    """Return the body of what `seal` made.

    Args:
        data: the sealed bytes.
        what: what they are, for the message.

    Raises:
        Corrupt: truncated or altered.
    """
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise Corrupt(f"{what}'s checksum does not match")
    return body

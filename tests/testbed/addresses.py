"""Loopback addresses of both kinds, for tests of what other nodes connect to."""

from __future__ import annotations

import contextlib
import socket

import pytest


def has_ipv6() -> bool:
    """Whether ::1 can be listened at here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


IPV4 = "127.0.0.1"
IPV6 = pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))
BOTH = (IPV4, IPV6)

"""Ports for the servers of tests, which are known before the servers listen, and kept for when they start again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

_COUNT = 12000
_TRIES = 3
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port of loopback that nothing listens on, and none twice.

    It is none of those that the kernel gives to connections: one of these could have it by the time a server listens.
    """
    end = _first_of_connections()
    for port in SystemRandom().sample(range(end - _COUNT, end), _COUNT):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError("no port is free")


def told_apart(
    free: Callable[[], int],
    in_use: Callable[[int], bool],
    listen: Callable[[int], contextlib.AbstractContextManager[object]],
) -> bool:
    """Tell whether a free port is known to be free, in use while somebody listens there, and free again afterwards.

    With another one, should a connection of somebody else's get it meanwhile.
    """

    def seen() -> list[bool]:
        port = free()
        found = [in_use(port)]
        with listen(port):
            found.append(in_use(port))
        return [*found, in_use(port)]

    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            if seen() == [False, True, False]:
                return True
    return False


def _first_of_connections() -> int:
    file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(file.read_text().split()[0]) if file.exists() else 32768
    return first if first > _COUNT + 1024 else 32768


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

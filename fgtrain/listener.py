"""Sockets for other nodes to connect to, by IPv4 or IPv6, as the cluster's addresses are. Light."""

from __future__ import annotations

import socket


def listen(port: int = 0) -> socket.socket:
    """Listen at all addresses of this machine, of both kinds where it has both; `port` 0: at any that is free.

    Raises:
        OSError: the port is taken.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def listen_at(host: str, port: int = 0) -> socket.socket:
    """Listen at an address of this machine, or at what a name of it stands for.

    Raises:
        OSError: the port is taken, or `host` is not this machine's.
    """
    kinds = {found[0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    return socket.create_server((host, port), family=socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6)

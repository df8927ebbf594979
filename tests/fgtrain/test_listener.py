"""What other nodes connect to can be reached by IPv4 and by IPv6."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fgtrain.listener import listen, listen_at
from fgtrain.snapshot.replicate import Receiver
from tests.testbed.addresses import BOTH


@pytest.mark.parametrize("address", BOTH)
def test_listener_is_reached_by_either_kind_of_address(address: str) -> None:
    with listen() as server, socket.create_connection((address, server.getsockname()[1]), 60):
        server.settimeout(60)
        server.accept()[0].close()


def test_without_both_kinds_it_listens_by_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listen() as server, socket.create_connection(("127.0.0.1", server.getsockname()[1]), 60):
        pass


@pytest.mark.parametrize("address", BOTH)
def test_listener_at_an_address_has_the_port_that_was_asked_for(address: str) -> None:
    with listen_at(address) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError):
            listen_at(address, port)
    with listen_at(address, port) as server:
        assert server.getsockname()[:2] == (address, port)


def test_listener_at_a_name_is_reached_by_it() -> None:
    with listen_at("localhost") as server, socket.create_connection(("localhost", server.getsockname()[1]), 60):
        pass


@pytest.mark.parametrize("address", BOTH)
def test_copies_are_taken_in_at_either_kind_of_address(address: str, tmp_path: Path) -> None:
    receiver = Receiver(address, tmp_path, "token")
    try:
        socket.create_connection((address, receiver.port), 60).close()
    finally:
        receiver.close()

"""The process that agents meet in: it stays while somebody is connected."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from fgtrain.rendezvous import connections
from tests.testbed.runs import ROOT, wait_for
from tests.testbed.s3 import free_port


def test_connections_to_a_port_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connections(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            peer, _ = server.accept()
            assert connections(port) == 1
            peer.close()


@pytest.mark.train
def test_store_outlives_sigterm_until_the_last_agent_has_gone() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "fgtrain.rendezvous", "--port", str(port)], cwd=ROOT)
    try:
        agent = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=240))
        agent.set("a", "1")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert agent.get("a") == b"1"
        del agent
        wait_for(lambda: process.poll() is not None, "the store has gone", 240)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(240)

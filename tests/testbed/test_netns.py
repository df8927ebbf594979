"""The hosts that tests of SSH run on are hosts, and nothing of them is left."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from cluster import Command
from cluster._ssh_link import close_links
from cluster.ssh import open_cluster
from tests.contracts.cluster import PAUSE, lives
from tests.testbed import netns
from tests.testbed.runs import wait_for

WHO = "import os, socket; print(socket.gethostname(), socket.gethostbyname(socket.gethostname()), os.environ['{}'])"


def test_hosts_are_apart_and_nothing_of_them_is_left() -> None:
    netns.skip_without()
    with netns.hosts(2) as hosts:
        settings = {"hosts": hosts.names, "ssh_config": str(hosts.config), "python": sys.executable, "project": "/"}
        cluster = open_cluster(settings, Path("/"), Path("/unused"))
        nodes = cluster.nodes("run", 2)
        assert [n.address for n in nodes] == [hosts.ip_of(name) for name in hosts.names]
        for node in nodes:
            cluster.make_ready(node)
            argv = (sys.executable, "-c", WHO.format("GLOO_SOCKET_IFNAME"))
            assert cluster.start(node, Command("who", argv, {})).wait(240) == 0
            # The name resolves to loopback, as on many a real host: gloo must not go by it.
            said = wait_for(partial(cluster.read, node, "who.log", 0), "the node answers").split()
            assert said == [node.name.encode(), b"127.0.1.1", b"eth0"]
        left = cluster.start(nodes[0], Command("left", (sys.executable, "-c", PAUSE), {}))
        assert left.pid in hosts.programs("node1")
        wait_for(lambda: hosts.programs("node2") == [], "the keeper of what ran there is gone")
        pids = [pid for name in hosts.names for pid in hosts.pids(name)]
        folder, names = hosts.folder, [hosts.namespace(name) for name in hosts.names]
        close_links()
    wait_for(lambda: not any(lives(pid) for pid in pids), "every process is gone", 240)
    assert not folder.exists()
    for words in (["netns", "list"], ["link"]):
        assert not any(name in told(*words) for name in (*names, hosts._bridge))
    assert not any((Path("/etc/netns") / name).exists() for name in names)


def told(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout

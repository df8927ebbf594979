"""Several hosts on one machine: network namespaces with addresses, host names and sshds of their own, on one bridge.

    sudo python -m tests.testbed.netns 2     # until Ctrl-C; prints what to write into clusters.toml

This machine is the bridge's own address. Each host's name resolves to loopback on itself, as Debian sets it up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.cluster import lives
from tests.testbed import sshd
from tests.testbed.sshd import Sshd, client_config

GONE_S = 240.0
_TOOLS = {"ip": "iproute2", "unshare": "util-linux"}


def missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if reason := sshd.missing():
        return reason
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"no {tool} (Debian: {package})"
    if os.getuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def skip_without() -> None:
    """Skip the test that calls this, with a reason, where there can be no namespaces."""
    if reason := missing():
        pytest.skip(reason)


class Hosts:
    """`count` hosts, called node1, node2, ..."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self._tag = f"{os.getpid() % 1000000}"
        self._net = _free_net(os.getpid())
        self.address = f"{self._net}.254"
        self.names = [f"node{i + 1}" for i in range(count)]
        self.servers: dict[str, Sshd] = {}

    @property
    def config(self) -> Path:
        """The client's configuration that knows all of them."""
        return self.folder / "ssh_config"

    def ip_of(self, name: str) -> str:
        return f"{self._net}.{self.names.index(name) + 1}"

    def namespace(self, name: str) -> str:
        return f"fg{self._tag}{name}"

    def up(self) -> None:
        """Make them."""
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name in self.names:
            self._add(name)
            self.serve(name)
        self.servers[self.names[0]].skip_unless_it_lets_us_in()
        client_config(self.folder, list(self.servers.values()))

    def _add(self, name: str) -> None:
        ns, link = self.namespace(name), self._link(name)
        _ip("netns", "add", ns)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", ns, "link", "set", "lo", "up")
        _ip("-n", ns, "addr", "add", f"{self.ip_of(name)}/24", "dev", "eth0")
        _ip("-n", ns, "link", "set", "eth0", "up")
        etc = Path("/etc/netns") / ns
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")

    def serve(self, name: str) -> None:
        """Start a host's sshd."""
        uts = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
        prefix = ["ip", "netns", "exec", self.namespace(name), *uts]
        server = Sshd(self.folder, name, self.ip_of(name), 22, prefix)
        server.start()
        self.servers[name] = server

    def down(self) -> None:
        """Remove them, and all that runs on them."""
        for name in self.names:
            self._empty(name)
            if name in self.servers:
                self.servers[name].stop()
            for words in (("link", "del", self._link(name)), ("netns", "del", self.namespace(name))):
                subprocess.run(["ip", *words], capture_output=True, check=False)  # the kernel takes its time with links
            shutil.rmtree(Path("/etc/netns") / self.namespace(name), ignore_errors=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        with contextlib.suppress(OSError):  # only if it was ours alone
            Path("/etc/netns").rmdir()

    def _empty(self, name: str) -> None:
        """Kill all that runs on a host, and what that has just begun to start."""
        deadline = time.monotonic() + GONE_S
        while (pids := self.pids(name)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def cut(self, name: str) -> None:
        """Take a host's network away."""
        _ip("link", "set", self._link(name), "down")

    def heal(self, name: str) -> None:
        """Give a host its network back."""
        _ip("link", "set", self._link(name), "up")

    def pids(self, name: str) -> list[int]:
        """Return the processes of a host, its sshd's among them."""
        done = subprocess.run(["ip", "netns", "pids", self.namespace(name)], capture_output=True, check=False)
        return [pid for pid in map(int, done.stdout.split()) if pid > 1]

    def running(self, name: str, word: str) -> list[int]:
        """Return a host's processes that have a word in their command line."""
        found = []
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def programs(self, name: str) -> list[int]:
        """Return what runs on a host besides its sshd and what serves connections."""
        there = self.pids(name)  # first: who connects meanwhile is no program
        serving = {*self.connected(name), *self._sshds(name)}
        return [pid for pid in there if pid not in serving and lives(pid)]

    def connected(self, name: str) -> list[int]:
        """Return what a host's sshd has started for connections."""
        servers = self._sshds(name)
        return [pid for pid in self.pids(name) if pid not in servers and lives(pid) and _parent(pid) in servers]

    def _sshds(self, name: str) -> list[int]:
        found = []
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "sshd":
                    found.append(pid)
        return found

    @property
    def _bridge(self) -> str:
        return f"fgb{self._tag}"

    def _link(self, name: str) -> str:
        return f"fgv{self._tag}x{self.names.index(name)}"


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Have some hosts; nothing of them is left afterwards.

    Call it from the main thread: Linux ends a server with the thread that started it.
    """
    with tempfile.TemporaryDirectory(prefix="netns-", ignore_cleanup_errors=True) as folder:
        made = Hosts(Path(folder), count)
        try:
            made.up()
            yield made
        finally:
            made.down()


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _free_net(seed: int) -> str:
    """Return the first three numbers of a private /24 that this machine has no address in."""
    taken = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    for i in range(2000):
        second, third = divmod((seed + i) % 20000, 200)
        net = f"10.{100 + second}.{third}"
        if f" {net}." not in taken:
            return net
    raise RuntimeError("no private network is free")


def main() -> None:
    """Keep some hosts until Ctrl-C."""
    if reason := missing():
        sys.exit(reason)
    with hosts(int(sys.argv[1])) as made, contextlib.suppress(KeyboardInterrupt):
        print(
            f'[netns]\nkind = "ssh"\nhosts = {made.names!r}\nssh_config = "{made.config}"\npython = "{sys.executable}"'
        )
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()

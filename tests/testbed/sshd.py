"""A real sshd that lets the user who runs the tests log in by key, with a home folder of the test's own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.testbed.s3 import die_with_parent, free_port

READY_S = 240.0
_ENVIRON = ("PATH", "LANG", "LC_ALL")


def missing() -> str:
    """Why no sshd can be run here; empty if one can."""
    absent = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    if program() is None:
        absent.append("sshd")
    return f"no {', '.join(absent)} (Debian: openssh-server)" if absent else ""


def program() -> str | None:
    """Return sshd's program; it wants to be called by its whole path."""
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def skip_without() -> None:
    """Skip the test that calls this, with a reason, where there is no sshd."""
    if reason := missing():
        pytest.skip(reason)


@dataclass
class Sshd:
    """One server. `prefix` is what it is started under (in a network namespace, say)."""

    folder: Path
    name: str
    address: str = "127.0.0.1"
    port: int = 0
    prefix: Sequence[str] = ()
    proc: subprocess.Popen[bytes] | None = None
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.home = self.folder / f"home-{self.name}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it did not; the message ends with its log.
        """
        self.home.mkdir(exist_ok=True)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation: empty, and part of any installed sshd
        for key in ("hostkey", "id"):
            if not (self.folder / key).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True)
        config = self.folder / f"{self.name}.conf"
        config.write_text(self._config())
        argv = [*self.prefix, str(program()), "-D", "-f", str(config), "-E", str(self.folder / f"{self.name}.log")]
        self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self.proc.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"sshd {self.name}: {(self.folder / f'{self.name}.log').read_text()[-1000:]}")
            time.sleep(0.05)

    def _config(self) -> str:
        environ = " ".join(f'{n}="{os.environ[n]}"' for n in _ENVIRON if n in os.environ)
        return "\n".join(
            [
                f"Port {self.port}",
                f"ListenAddress {self.address}",
                f"HostKey {self.folder}/hostkey",
                f"AuthorizedKeysFile {self.folder}/id.pub",
                "PidFile none",
                "StrictModes no",
                "UsePAM no",
                "PermitRootLogin prohibit-password",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "MaxStartups 100",
                f'SetEnv HOME="{self.home}" {environ}',
                "",
            ]
        )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=1) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    def stop(self) -> None:
        """End the server and its sessions; programs that were started detached live on."""
        if self.proc is None:
            return
        family = [self.proc.pid, *_descendants(self.proc.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.proc.wait(240)
        self.proc = None

    def skip_unless_it_lets_us_in(self) -> None:
        """Skip the test that calls this where a key is not enough: without PAM, a locked account gets no login."""
        argv = ["ssh", "-F", str(client_config(self.folder, [self])), "-o", "BatchMode=yes", self.name, "true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=READY_S)
        if done.returncode:
            log = (self.folder / f"{self.name}.log").read_text().strip().splitlines()
            pytest.skip(f"sshd does not let {getpass.getuser()} in: {(log or [done.stderr])[-1].strip()}")

    def host_entry(self) -> str:
        """Return what leads to it, for a client's configuration."""
        known = self.folder / f"known-{self.name}"
        where = f"[{self.address}]:{self.port}" if self.port != 22 else self.address
        known.write_text(f"{where} {(self.folder / 'hostkey.pub').read_text()}")
        return "\n".join(
            [
                f"Host {self.name}",
                f"  HostName {self.address}",
                f"  Port {self.port}",
                f"  User {getpass.getuser()}",
                f"  IdentityFile {self.folder}/id",
                "  IdentitiesOnly yes",
                f"  UserKnownHostsFile {known}",
                "  GlobalKnownHostsFile /dev/null",
                "  StrictHostKeyChecking yes",
                "",
            ]
        )


def client_config(folder: Path, servers: Sequence[Sshd]) -> Path:
    """Write a client's configuration that knows these servers by name."""
    file = folder / "ssh_config"
    file.write_text("\n".join(server.host_entry() for server in servers))
    return file


@contextlib.contextmanager
def sshd(name: str = "node") -> Iterator[Sshd]:
    """Run a server on loopback in a folder of its own; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="sshd-", ignore_cleanup_errors=True) as folder:
        server = Sshd(Path(folder), name)
        try:
            server.start()
            server.skip_unless_it_lets_us_in()
            yield server
        finally:
            server.stop()


def _descendants(pid: int) -> list[int]:
    """Return the processes below one that have not moved to another session's keeper."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found

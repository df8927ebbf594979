"""Real S3 servers on loopback, started, killed and restarted by tests.

`weed mini` (SeaweedFS) is the good vendor: it checks signatures and checksums and keeps conditions on writes.
`localbucket` starts quickly. `rclone serve s3` is the bad vendor: it takes a condition and ignores it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BINARIES = {"seaweedfs": "weed", "localbucket": "localbucket", "rclone": "rclone"}
BUCKET = "runs"
ACCESS_KEY = "AKIATESTBED000000001"
SECRET_KEY = "testbedsecrettestbedsecrettestbedsecret1"
READY_S = 240.0
SEAWEED_PORTS = ("master", "volume", "filer", "admin")
PR_SET_PDEATHSIG = 1


class BinaryMissing(Exception):
    """The server's program is not installed; the message says so."""


def binary(kind: str) -> Path:
    """The server's program, beside this interpreter or on PATH."""
    name = BINARIES[kind]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        raise BinaryMissing(f"no {name} beside {Path(sys.executable).name} or on PATH")
    return Path(found)


def free_port() -> int:
    """Return a port that nothing uses; never the same one twice, and none that the kernel may give to a connection."""
    while True:
        port = _draw.randrange(10_000, _kernels_ports())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


_given: set[int] = set()
_draw = random.SystemRandom()  # not the seeded one: tests of several processes may run at once


def _kernels_ports() -> int:
    """Return the first of the ports that the kernel chooses from for connections."""
    with contextlib.suppress(OSError):
        return max(20_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    return 32_768


@dataclass
class S3Server:
    """One server process (group) over one data folder; it outlives kill() and restart()."""

    kind: str
    data: Path
    port: int = field(default_factory=free_port)
    bucket: str = BUCKET
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    proc: subprocess.Popen[bytes] | None = None
    _command: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> Mapping[str, str]:
        """What a client's environment needs to use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the process and wait until an object can be written and read.

        Raises:
            BinaryMissing: the program is not installed.
            RuntimeError: it died or was not ready in time; the message ends with its log.
        """
        self._command = self._command or command(self)
        with (self.data / "log").open("ab") as log:
            self.proc = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
            )
        atexit.register(self.kill)
        deadline = time.monotonic() + READY_S
        while not self._ready():
            if self.proc.poll() is not None or time.monotonic() > deadline:
                self.kill()
                log_end = (self.data / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.kind} not ready (exit {self.proc.returncode}): {log_end}")
            time.sleep(0.05)

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Signal the whole process group and wait for it to end; nothing if it is gone."""
        atexit.unregister(self.kill)
        if self.proc is None or self.proc.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.proc.pid, sig)
        try:
            self.proc.wait(240)
        except subprocess.TimeoutExpired:
            os.killpg(self.proc.pid, signal.SIGKILL)
            self.proc.wait(240)

    def restart(self) -> None:
        """Kill it, if it lives, and start it again on the same port and data."""
        self.kill()
        self.start()

    def client(self, patience_s: float = 240.0) -> Any:
        """A boto3 client that never retries: what the store under test is compared with."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=patience_s,
                read_timeout=patience_s,
            ),
        )

    def _ready(self) -> bool:
        client = self.client(10.0)
        try:
            if self.bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"x")
            client.get_object(Bucket=self.bucket, Key="ready")["Body"].read()
            client.delete_object(Bucket=self.bucket, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True


def command(server: S3Server) -> list[str]:
    """The command line that serves `server.data` on `server.port`."""
    program, data, port = str(binary(server.kind)), server.data / "objects", server.port
    data.mkdir(parents=True, exist_ok=True)
    if server.kind == "localbucket":
        return [program, "--port", str(port), str(data)]
    if server.kind == "rclone":
        keys = f"{server.access_key},{server.secret_key}"
        where = ["--addr", f"127.0.0.1:{port}", "--auth-key", keys]
        return [
            program,
            "serve",
            "s3",
            str(data),
            *where,
            "--vfs-cache-mode",
            "off",
            "--config",
            str(data.parent / f"{data.name}.conf"),
        ]
    return [program, *seaweed_arguments(server, data)]


def seaweed_arguments(server: S3Server, data: Path) -> list[str]:
    """All of SeaweedFS in one process, on ports of its own, without telemetry, web pages or WebDAV."""
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = server.data / "identities.json"
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}))
    ports = [
        flag for name in SEAWEED_PORTS for flag in (f"-{name}.port={free_port()}", f"-{name}.port.grpc={free_port()}")
    ]
    s3 = [f"-s3.port={server.port}", f"-s3.port.grpc={free_port()}", f"-s3.config={config}"]
    off = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false"]
    off += ["-master.telemetry=false", "-volume.preStopSeconds=0"]
    place = [f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    return ["-logtostderr=true", "mini", *place, *ports, *s3, *off]


def die_with_parent() -> None:
    """In the child: be killed when the process that started it dies, however it dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def s3_server(kind: str) -> Iterator[S3Server]:
    """Run a server of this kind in a folder of its own; nothing of it is left afterwards.

    Call it from the main thread: Linux ends the server with the thread that started it.

    Raises:
        BinaryMissing: the program is not installed.
    """
    binary(kind)
    with tempfile.TemporaryDirectory(prefix=f"{kind}-", ignore_cleanup_errors=True) as folder:
        server = S3Server(kind, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()

"""Metadata services of three clouds on loopback, as their documentation says they answer."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fgtrain.notices._metadata import Answer, Metadata

GCP_AT_REST = {"preempted": "FALSE", "maintenance-event": "NONE"}


class Patient(Metadata):
    """Asks a service of this process, which may be stalled for longer than any real one takes to answer."""

    def ask(self, path: str, *, timeout_s: float = 0.0, **request: Any) -> Answer:
        """See base class; it waits for minutes, whatever `timeout_s`."""
        return super().ask(path, timeout_s=max(timeout_s, 240.0), **request)


@dataclass
class Service:
    """What the service says now; tests change it, then call `changed`. `seen` are the requests so far."""

    url: str = ""
    # AWS: the items that are there, by path below /latest/meta-data/; tokens that are good
    aws: dict[str, Any] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    # Google Cloud: values with how often they have changed
    gcp: dict[str, str] = field(default_factory=lambda: dict(GCP_AT_REST))
    etags: dict[str, int] = field(default_factory=dict)
    # Azure
    events: list[dict[str, Any]] = field(default_factory=list)
    vm: str = "vm-1"
    approved: list[str] = field(default_factory=list)
    # any
    broken: bytes | None = None  # answer everything with this
    hang: threading.Event | None = None  # answer nothing before this
    nodes: set[str] | None = None  # of /NODE/...: only these are told of anything
    seen: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def change(self, value: str, to: str) -> None:
        """Change one of Google's values, and let those know who wait for it."""
        with self._changed:
            self.gcp[value] = to
            self.etags[value] = self.etags.get(value, 0) + 1
            self._changed.notify_all()

    def wait_for(self, path: str, timeout_s: float = 240.0) -> None:
        """Wait until something was asked of a path, by a request whose start line contains it."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(path in line for line in self.seen), timeout_s), self.seen

    def note(self, line: str) -> None:
        with self._changed:
            self.seen.append(line)
            self._changed.notify_all()

    def value(self, name: str, asked: dict[str, str], quiet: bool) -> tuple[str, str]:
        """Return one of Google's values and its ETag; waits for a change, if asked to."""

        def etag() -> str:
            return f"e{0 if quiet else self.etags.get(name, 0)}"

        with self._changed:
            if asked.get("wait_for_change") == "true":
                timeout_s = float(asked.get("timeout_sec", "300"))
                self._changed.wait_for(lambda: etag() != asked.get("last_etag"), timeout_s)
            return GCP_AT_REST[name] if quiet else self.gcp[name], etag()


class Handler(BaseHTTPRequestHandler):
    service: Service

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        service = self.service
        service.note(f"{method} {self.path}")
        if service.hang:
            service.hang.wait(300)
        if service.broken is not None:
            return self._answer(200, service.broken)
        parts = urlsplit(self.path)
        asked = {k: v[0] for k, v in parse_qs(parts.query).items()}
        node, path = "", parts.path
        if not path.startswith(("/latest/", "/computeMetadata/", "/metadata/")):
            node, path = path.split("/")[1], "/" + path.split("/", 2)[2]
        quiet = service.nodes is not None and node not in service.nodes
        if path.startswith("/latest/"):
            return self._aws(method, path, quiet)
        if path.startswith("/computeMetadata/v1/instance/"):
            return self._gcp(path.rsplit("/", 1)[1], asked, quiet)
        return self._azure(method, path, asked)

    def _aws(self, method: str, path: str, quiet: bool) -> None:
        if path == "/latest/api/token":
            if method != "PUT":
                return self._answer(405)
            if not 1 <= int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21600:
                return self._answer(400)
            token = f"token-{time.monotonic_ns()}"
            self.service.tokens.add(token)
            return self._answer(200, token.encode())
        if self.headers.get("X-aws-ec2-metadata-token") not in self.service.tokens:
            return self._answer(401)
        item = self.service.aws.get(path.removeprefix("/latest/meta-data/"))
        if item is None or quiet:
            return self._answer(404)
        return self._answer(200, json.dumps(item).encode())

    def _gcp(self, name: str, asked: dict[str, str], quiet: bool) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            return self._answer(403)
        value, etag = self.service.value(name, asked, quiet)
        return self._answer(200, value.encode(), {"Metadata-Flavor": "Google", "ETag": etag})

    def _azure(self, method: str, path: str, asked: dict[str, str]) -> None:
        if self.headers.get("Metadata") != "true" or "api-version" not in asked:
            return self._answer(400)
        if path == "/metadata/instance/compute/name":
            return self._answer(200, self.service.vm.encode())
        if method == "POST":
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.service.approved += [r["EventId"] for r in body["StartRequests"]]
            return self._answer(200)
        return self._answer(200, json.dumps({"DocumentIncarnation": 1, "Events": self.service.events}).encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(OSError):  # who asked has given up
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


@contextlib.contextmanager
def metadata_service() -> Iterator[Service]:
    """Serve on a port of loopback until the end of the `with`."""
    service = Service()
    handler = type("BoundHandler", (Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join(240)

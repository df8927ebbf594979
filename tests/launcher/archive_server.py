"""A loopback HTTP server for one file, which misbehaves as it is told, one instruction a request."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Fault:
    """How one request is answered; the default is the correct answer."""

    status: int = 0  # answer this and nothing else
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    reset: bool = False  # the connection is reset before a word is said
    chunked: bool = False  # no Content-Length
    wrong_range: bool = False  # 206 with another range than asked
    before: tuple[bytes, str] | None = None  # from this request on: this content, this ETag


@dataclass
class Archive:
    """What is served, and what was asked."""

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def starts(self) -> list[str]:
        """Return the Range header of each request."""
        return [headers.get("Range", "") for headers in self.asked]


@contextmanager
def serve(archive: Archive) -> Iterator[Archive]:
    """Serve on a free port until the block ends."""
    handler = type("Handler", (_Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_port}/birds.tgz"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    archive: Archive

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""

    def do_GET(self) -> None:
        self.archive.asked.append(dict(self.headers))
        fault = self.archive.faults.pop(0) if self.archive.faults else Fault()
        if fault.before:
            self.archive.content, self.archive.etag = fault.before
        if fault.reset:
            self._reset()
        elif fault.status:
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.end_headers()
        else:
            self._send(fault)

    def _send(self, fault: Fault) -> None:
        start = self._start()
        if start > len(self.archive.content) - 1:
            self.send_error(416)
            return
        body = self.archive.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if fault.wrong_range else start
            last, total = len(self.archive.content) - 1, len(self.archive.content)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if self.archive.etag:
            self.send_header("ETag", self.archive.etag)
        if not fault.chunked:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: fault.cut_after])

    def _start(self) -> int:
        """Return where to start: only if ranges are served and the version asked for is ours."""
        asked = self.headers.get("Range", "")
        same = self.headers.get("If-Range", self.archive.etag) == self.archive.etag
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.archive.ranges and same else 0

    def _reset(self) -> None:
        """Close with RST, not FIN: a linger time of 0 does that."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

"""A proxy in front of an S3 server that loses, breaks or replaces answers as a test asks.

It passes requests on byte for byte (signatures cover the Host header, which stays the proxy's).
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 240


class Request(NamedTuple):
    """What a rule sees: `number` counts from 0 among the requests with this method."""

    method: str
    path: str
    conditional: bool
    number: int


class Lose(Enum):
    """What is lost on the way; a lost message closes its connection."""

    REQUEST = "the request, before the server sees it"
    ANSWER = "the answer, after the server has done the work"
    HALF = "the second half of the body of the answer"
    RANGE = "the range that the request asks for"
    PATIENCE = "nothing, and nothing comes either: the client waits until the proxy ends"
    BIT_UP = "one bit of the body of the request"
    BIT_DOWN = "one bit of the body of the answer"


class Answer(NamedTuple):
    """Say this instead of asking the server."""

    status: int
    code: str


Rule = Callable[[Request], Lose | Answer | None]


class S3Proxy(ThreadingHTTPServer):
    """`endpoint` is where clients go; `rule` decides on each request; `seen` counts requests by method."""

    def __init__(self, upstream: str, address: str = "127.0.0.1") -> None:
        self.upstream = urlsplit(upstream).netloc
        self.rule: Rule = lambda request: None
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.over = threading.Event()
        super().__init__((address, 0), Handler)
        self.endpoint = f"http://{address}:{self.server_port}"

    def decide(self, method: str, path: str, conditional: bool) -> Lose | Answer | None:
        with self.lock:
            number = self.seen[method]
            self.seen[method] += 1
        return self.rule(Request(method, path, conditional, number))

    def reset(self, rule: Rule) -> None:
        """Count from 0 again, under another rule."""
        self.seen.clear()
        self.rule = rule


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.decide(self.command, self.path, "If-None-Match" in self.headers)
        if fate is Lose.PATIENCE:
            self.server.over.wait()
            return self.hang_up()
        if fate is Lose.REQUEST:
            return self.hang_up()
        if isinstance(fate, Answer):
            text = f"<Error><Code>{fate.code}</Code><Message>said the proxy</Message></Error>".encode()
            return self.answer(fate.status, [("Content-Type", "application/xml")], text)
        if fate is Lose.BIT_UP:
            body = flipped(body)
        hidden = {"expect", "range"} if fate is Lose.RANGE else {"expect"}
        status, headers, answer = self.ask(body, hidden)
        if fate is Lose.BIT_DOWN:
            answer = flipped(answer)
        if fate is Lose.ANSWER:
            return self.hang_up()
        return self.answer(status, headers, answer, half=fate is Lose.HALF)

    def ask(self, body: bytes, hidden: set[str]) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=TIMEOUT_S)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in hidden:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, half: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the rule's test reads `seen`."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on


def flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:]


@contextlib.contextmanager
def s3_proxy(upstream: str, address: str = "127.0.0.1") -> Iterator[S3Proxy]:
    """Run a proxy, that clients reach at an address of this machine, in threads of this process."""
    proxy = S3Proxy(upstream, address)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(TIMEOUT_S)

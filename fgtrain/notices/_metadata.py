"""Asking a metadata service: one request, one answer, no proxy, no redirect, no waiting for ever.

Metadata services live at a link-local address of the machine itself. `http.client` knows nothing of proxies, which is
what is wanted: a proxy would be asked about its own machine.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

ADDRESS = "http://169.254.169.254"
"""Source: of AWS, Google Cloud and Azure alike; see each adapter."""

_TIMEOUT_S = 2.0
_MOST = 1 << 16  # bytes of an answer; anything longer is none


class Answer(NamedTuple):
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Metadata:
    """One machine's metadata service."""

    def __init__(self, url: str, pause: Callable[[float], None] = time.sleep) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        self.pause = pause

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> Answer:
        """Ask once.

        Raises:
            OSError, http.client.HTTPException: no answer within `timeout_s`, or none that is one.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, self._path + path, body, dict(headers or {}))
            response = connection.getresponse()
            data = response.read(_MOST)
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
        finally:
            connection.close()


def expect(answer: Answer, *statuses: int) -> Answer:
    """Return the answer if it has one of these statuses.

    Raises:
        OSError: it has another.
    """
    if answer.status not in statuses:
        raise OSError(f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}")
    return answer

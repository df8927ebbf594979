"""Download one file over HTTP so that no failure costs more than the bytes in flight.

An interrupted download goes on from the length of what is there. Beside it `<target>.version` keeps the
server's name for the version, so that two versions are not joined (RFC 9110, 13.1.5, If-Range).
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fgtrain.errors import UserError

Report = Callable[[int, int], None]
"""Told (bytes done, bytes in all) as a download goes on."""

_BLOCK = 1 << 20  # bytes
_TIMEOUT_S = 30.0  # without a byte
_TRIES = 6  # in a row that bring nothing new
_MAX_WAIT_S = 30.0
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The file to be had: `size` in bytes, `sha256` in lower-case hex."""

    name: str
    size: int
    sha256: str


class _Refused(Exception):
    """The URL will not give the file, however often it is asked."""


class _Interrupted(Exception):
    """The transfer broke off; the next try may do better. `wait_s` is what the server asked for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def download(
    wanted: Wanted,
    urls: Sequence[str],
    target: Path,
    report: Report,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Bring `wanted` to `target` from the first of `urls` that serves it; its bytes are verified on return.

    Raises:
        UserError: no URL served the file, each one's reason given; or the disk cannot be written.
    """
    reasons = []
    for url in urls:
        try:
            _from(url, wanted, _Part(target), report, wait)
            return
        except _Refused as error:
            reasons.append(f"{url} {error}")
    hint = "look at the network or proxy settings, or name another source with `--mirror URL`"
    raise UserError(f"{wanted.name} could not be downloaded: {'; '.join(reasons)}; {hint}")


@dataclass(frozen=True, slots=True)
class _Part:
    """The bytes so far, and which version they are of: its URL and the server's name for it."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".version")

    def size(self) -> int:
        """Bytes there so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> str:
        """Return the validator given to `begin`; empty if there was none or it was another server's."""
        noted_url, _, validator = self._note.read_text("utf-8").partition("\n") if self._note.exists() else ("", "", "")
        return validator if noted_url == url else ""

    def begin(self, url: str, validator: str) -> None:
        """Forget the bytes so far and note the version of those to come."""
        with _disk_errors(self.path):
            self.path.write_bytes(b"")
            self._note.write_text(f"{url}\n{validator}", "utf-8")

    def drop(self) -> None:
        """Remove every trace."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def drop(target: Path) -> None:
    """Remove what `download` left at `target`, finished or not."""
    _Part(target).drop()


def _from(url: str, wanted: Wanted, part: _Part, report: Report, wait: Callable[[float], object]) -> None:
    """Download from one URL. If bytes that came in pieces prove wrong, begin anew, once."""
    in_pieces = _transfer(url, wanted, part, report, wait)
    found = sha256(part.path)
    if found != wanted.sha256 and in_pieces:
        part.drop()
        _transfer(url, wanted, part, report, wait)
        found = sha256(part.path)
    if found != wanted.sha256:
        part.drop()
        raise _Refused(f"serves other bytes (SHA-256 {found[:12]}..., expected {wanted.sha256[:12]}...)")


def _transfer(url: str, wanted: Wanted, part: _Part, report: Report, wait: Callable[[float], object]) -> bool:
    """Ask until the part has its full size; true if it was put together from pieces.

    Only getting further than ever before refills the tries: a server that always breaks off at the same place
    and ignores Range would else be asked for ever.
    """
    furthest, failures = part.size(), 0
    in_pieces = furthest > 0
    while part.size() != wanted.size:
        try:
            _ask(url, wanted, part, report)
        except _Interrupted as error:
            have = part.size()
            in_pieces |= have > 0
            failures = 1 if have > furthest else failures + 1
            furthest = max(furthest, have)
            if failures >= _TRIES:
                raise _Refused(f"failed {failures} times in a row ({error})") from error
            wait(max(error.wait_s, pause_s(failures)))
    return in_pieces


def pause_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 1, 2, 4, ... up to 30."""
    return min(_MAX_WAIT_S, 2.0 ** (failures - 1))


def _ask(url: str, wanted: Wanted, part: _Part, report: Report) -> None:
    """Send one request and keep the bytes that come."""
    have = part.size()
    if have > wanted.size:
        part.drop()
        have = 0
    with (
        _network_errors(part),
        urllib.request.urlopen(_request(url, have, part), timeout=_TIMEOUT_S) as reply,
    ):
        _accept(reply, url, wanted, part)
        _receive(reply, wanted, part, report)


def _request(url: str, have: int, part: _Part) -> urllib.request.Request:
    """Ask for the rest of what we have, if the version is still the same."""
    # Some servers refuse urllib's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "fglaunch", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version := part.version(url):
            request.add_header("If-Range", version)
    return request


def _accept(reply: Any, url: str, wanted: Wanted, part: _Part) -> None:
    """Check what the reply is: the rest (206) is appended, the whole (200) replaces what we have."""
    status = getattr(reply, "status", None) or 200  # file:// replies have none
    if status == 206:
        content_range = reply.headers.get("Content-Range", "")
        if content_range.replace(" ", "") != f"bytes{part.size()}-{wanted.size - 1}/{wanted.size}":
            part.drop()
            raise _Interrupted(f"sent another range than asked: {content_range!r}")
        return
    length = reply.headers.get("Content-Length")
    if status != 200 or (length is not None and int(length) != wanted.size):
        raise _Refused(f"serves another file (status {status}, {length} bytes, expected {wanted.size})")
    part.begin(url, validator(reply.headers.get("ETag", ""), reply.headers.get("Last-Modified", "")))


def validator(etag: str, last_modified: str) -> str:
    """Choose what goes into If-Range: a strong ETag, else the date; a weak ETag is not allowed there."""
    return etag if etag.startswith('"') else last_modified


def _receive(reply: Any, wanted: Wanted, part: _Part, report: Report) -> None:
    """Append the reply's bytes to the part."""
    with _opened(part) as file:
        done = part.size()
        report(done, wanted.size)
        while done < wanted.size:
            block = reply.read1(min(_BLOCK, wanted.size - done)) if hasattr(reply, "read1") else reply.read(_BLOCK)
            if not block:
                raise _Interrupted(f"the connection closed after {done} of {wanted.size} bytes")
            with _disk_errors(part.path):
                file.write(block)
            done += len(block)
            report(done, wanted.size)


@contextmanager
def _opened(part: _Part) -> Iterator[BinaryIO]:
    """Open the part for appending, unbuffered, so that its size is what was received."""
    with _disk_errors(part.path):
        file = part.path.open("ab", buffering=0)
    with file:
        yield file


@contextmanager
def _network_errors(part: _Part) -> Iterator[None]:
    """Sort what can go wrong on the network into worth another try, and not."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is not a beginning of what the server has
            part.drop()
            raise _Interrupted("has another size than expected") from error
        if error.code not in _WORTH_RETRYING:
            raise _Refused(f"answered {error.code} {error.reason}") from error
        raise _Interrupted(f"answered {error.code}", _retry_after_s(error.headers)) from error
    except urllib.error.URLError as error:
        # A string means that nothing was tried: an unknown scheme, no host.
        if isinstance(error.reason, str | FileNotFoundError | ssl.SSLCertVerificationError):
            raise _Refused(f"cannot be opened ({error.reason})") from error
        raise _Interrupted(str(error.reason)) from error
    except ValueError as error:  # urllib: unknown or missing scheme
        raise _Refused(f"is not a URL that can be opened ({error})") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _retry_after_s(headers: Any) -> float:
    """Seconds the server asked us to wait, within reason; a date counts as nothing."""
    value = str(headers.get("Retry-After", ""))
    return min(float(value), 4 * _MAX_WAIT_S) if value.isdecimal() else 0.0


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Tell the disk's errors from the network's, which Python gives the same type."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; the next call goes on from here") from error


def sha256(path: Path) -> str:
    """Return the lower-case hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, bytes_: int, what: str) -> None:
    """Check that so many bytes are free.

    Raises:
        UserError: they are not.
    """
    free = shutil.disk_usage(folder).free
    if free < bytes_:
        raise UserError(
            f"{folder}: {what} needs {bytes_ / 1e9:.1f} GB there and {free / 1e9:.1f} GB are free; "
            "make room, or choose another folder with `--into DIR`"
        )

"""The bulk of what goes to and from S3, chunks of snapshots, past s3fs: half of the processor time, less copying.

Objects are read with botocore, on which s3fs stands, straight into their place. They are written with obstore, a client
in Rust that needs neither the interpreter nor a copy (docs/decisions/006 and 017 have the figures). Writing so is only
a faster way: whatever goes wrong with it is not judged here; the object then goes the plain way, which says why it
cannot.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
import obstore
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from obstore.store import S3Store as Client
from urllib3.exceptions import HTTPError

CONNECT_S = 5
READ_S = 30
CONNECTIONS = 32
PUT_S = 60  # for an object: a network that needs longer gains nothing by a faster client
REST_S = 60.0  # how long the plain way is taken after a failure
_PLAIN_KEY = re.compile(r"[A-Za-z0-9._/-]+")  # what no two clients encode differently
_CREDENTIALS_FOR = timedelta(minutes=5)  # then they are asked for again; botocore renews those that expire


class BodyBroken(Exception):
    """The answer began well, and its body then broke off or did not match its checksum."""


class Bulk:
    """Clients for large objects of one bucket; threads may share them, and a process and those it forks."""

    def __init__(self, bucket: str, endpoint: str | None) -> None:
        self._bucket, self._endpoint = bucket, endpoint
        self._making = threading.Lock()
        self._readers: dict[int, Any] = {}  # by process: a child must not use its parent's connections
        self._writer: Client | None = None
        self._writes_in = 0  # obstore's threads stay behind in a fork
        self._rests_until = 0.0

    def fetch(self, what: dict[str, str], into: memoryview) -> int:
        """Read an object into memory; returns its size, and leaves `into` alone if that is another.

        Args:
            what: `Bucket` and `Key`.
            into: as long as the object should be.

        Raises:
            BodyBroken: what came is not whole; it can be tried again.
            BotoCoreError, ClientError, OSError
        """
        answer = self._reader().get_object(**what)
        size = int(answer["ContentLength"])
        with contextlib.closing(answer["Body"]) as body:
            try:
                if size != len(into) or _read_into(body, into):
                    return size
            except (OSError, BotoCoreError, HTTPError) as error:
                raise BodyBroken from error
        raise BodyBroken from EOFError("too short")

    def put(self, key: str, data: memoryview) -> bool:
        """Write an object, whose arrival its signature vouches for; False: it did not come to that."""
        if time.monotonic() < self._rests_until or not _PLAIN_KEY.fullmatch(key):
            return False
        try:
            if (writer := self._write_with()) is None:
                return False
            obstore.put(writer, key, data, use_multipart=False)
        except Exception:  # of any kind: see the module
            self._rests_until = time.monotonic() + REST_S
            return False
        return True

    def _reader(self) -> Any:
        process = os.getpid()
        with self._making:
            if process not in self._readers:
                self._readers[process] = botocore.session.Session().create_client(
                    "s3", endpoint_url=self._endpoint, config=Config(**client_config(self._endpoint))
                )
            return self._readers[process]

    def _write_with(self) -> Client | None:
        """Return the writing client, None where there is none: in a fork, and where it cannot be set up alike."""
        with self._making:
            if self._writes_in == 0:
                self._writes_in = os.getpid()
                self._writer = _writer(self._bucket, self._endpoint)
            return self._writer if self._writes_in == os.getpid() else None


def _writer(bucket: str, endpoint: str | None) -> Client | None:
    session = botocore.session.Session()
    style = client_config(endpoint)["s3"]["addressing_style"]
    if session.get_credentials() is None or (endpoint and style != "path"):
        return None
    return Client(
        bucket,
        endpoint=endpoint,
        region=session.get_config_variable("region") or "us-east-1",
        checksum_algorithm="SHA256",  # which it works out for the signature anyway
        virtual_hosted_style_request=not endpoint and "." not in bucket,
        credential_provider=lambda: _credentials(session),  # type: ignore[arg-type]
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=PUT_S),
        },
        retry_config={"max_retries": 0},  # the plain way tries again
    )


def _credentials(session: Any) -> dict[str, Any]:
    frozen = session.get_credentials().get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR,
    }


def _read_into(body: Any, into: memoryview) -> bool:
    """Fill memory from an answer's body; False if the body ends early."""
    done = 0
    while done < len(into):
        read = body.readinto(into[done:])
        if not read:
            return False
        done += read
    return True


def client_config(endpoint: str | None) -> dict[str, Any]:
    """Return what every client of botocore's kind is set to."""
    profile = botocore.session.Session().get_scoped_config().get("s3", {})
    style = profile.get("addressing_style", "path" if endpoint else "auto")
    return {
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "retries": {"mode": "standard"},
        "max_pool_connections": CONNECTIONS,
        "s3": {"addressing_style": style},
        # A checksum goes in a header, which every vendor takes or ignores; in a trailer, many refuse it.
        "request_checksum_calculation": "when_required",
        # Asked for with whole objects only: to a range, some vendors add the checksum of the whole.
        "response_checksum_validation": "when_required",
    }

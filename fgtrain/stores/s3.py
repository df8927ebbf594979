"""`s3://bucket/prefix`: objects in S3 or in a vendor's likeness of it, through s3fs.

The environment says where and who, as for every AWS tool: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, `AWS_PROFILE`, `AWS_MAX_ATTEMPTS`. With an endpoint of its
own, buckets are addressed by path; a vendor that refuses that (Aliyun OSS) wants `addressing_style =
virtual` under `s3 =` in the profile of `~/.aws/config`.

s3fs brings the connection, credentials, retries and threads; its file-system calls are not used, because
they cache listings, take `?versionId=` in a key for syntax, and answer for folders where S3 has none.

A create whose answer is lost is sent again by the client (botocore does, and beneath it aiohttp, which
tells nobody) and then meets its own object. So each create labels its object with a name of its own in the
metadata, and the answer 412 is settled by looking at the label: one caller wins, even where two create the
same bytes.

An upload in parts that is killed leaves parts that cost money: give the bucket a lifecycle rule that aborts
incomplete uploads after a day.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

from fgtrain.errors import KeyExists, KeyMissing, StoreError, StoreUnavailable, UserError
from fgtrain.stores import Abilities, Entry, probe, valid_key

try:
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NoConnection
    from fsspec.asyn import sync
    from s3fs import S3FileSystem

    from fgtrain.s3_bulk import BodyBroken, Bulk, client_config
except ImportError as missing:
    raise UserError(f"store s3://: {missing}; install the extra: pip install 'fglaunch[s3]'") from missing

MIB = 1 << 20
PARTS_ABOVE = 64 * MIB
PART_BYTES = 16 * MIB
PARTS_LIMIT = 10_000
PARTS_AT_ONCE = 4
LABEL = "fglaunch-create"
# Tries of what the client does not try again by itself: a body that breaks off, a create that meets another.
ATTEMPTS = 3
PAUSE_S = 0.1

FAULTS = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
REMEDIES = {
    "NoSuchBucket": "there is no such bucket; create it, or mend the URL",
    "AccessDenied": "access is denied; allow these credentials to get, put, list and delete objects",
    "InvalidAccessKeyId": "the access key is unknown there; set AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; set AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidToken": "the session token is not accepted; set AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "SecondLevelDomainForbidden": "buckets are not addressed by path there; set addressing_style = virtual",
}
NO_CREDENTIALS = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
NO_SERVER = "nothing answers there; start the server, or mend AWS_ENDPOINT_URL"


class S3Store:
    """Objects below `prefix` in one bucket; threads may share it, and a process and those it forks."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        # By process: a child must not use its parent's connection, nor free it (its thread is not there).
        self._connections: dict[int, Any] = {}
        self._bulk = Bulk(bucket, endpoint)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.put`."""
        view = memoryview(data).cast("B")
        if len(view) <= PARTS_ABOVE:
            if self._bulk.put(self._object(key)["Key"], view):
                return
            self._call("put_object", key, Body=_body(data), ChecksumCRC32=_crc32(view))
            return
        target = self._object(key)
        try:
            connection = self._connection()
            sync(connection.loop, _put_in_parts, connection, target, view)
        except FAULTS as error:
            self._raise(error, key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `Store.create`. Always one request: some vendors forget the condition when parts are joined."""
        body = _body(data)
        label = uuid.uuid4().hex
        request = {
            "Body": body,
            "ChecksumCRC32": _crc32(body),
            "IfNoneMatch": "*",
            "Metadata": {LABEL: label},
        }
        for attempt in range(ATTEMPTS):
            try:
                self._call("put_object", key, **request)
            except KeyExists:
                if self._label(key) != label:
                    raise
            except StoreUnavailable as error:
                status = _status(error.__cause__)
                if status == 409 and attempt < ATTEMPTS - 1:
                    # Another request for this key was in flight, nothing was written; AWS asks to try again.
                    time.sleep(PAUSE_S * 2**attempt)
                    continue
                if status != 501:
                    raise
                self.put(key, body)  # the vendor knows no conditions, which `check` reports
            return

    def copy(self, source: str, target: str) -> None:
        """See `Copier.copy`. Done by the server (up to 5 GiB), or by get and put where the vendor cannot."""
        origin = {"Bucket": self._bucket, "Key": self._prefix + valid_key(source)}
        try:
            self._call("copy_object", target, CopySource=origin, MetadataDirective="COPY")
        except KeyMissing:
            raise KeyMissing(f"{self.url}/{source}") from None
        except StoreUnavailable as error:
            if _status(error.__cause__) not in (405, 501):
                raise
            self.put(target, self.get(source))

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store.get`."""
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"bytes [{start}, {end}) of {key!r}: positions count from the start")
        if end is not None and end <= start:
            self.head(key)
            return b""
        request = self._object(key)
        if start or end is not None:
            request["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        else:
            request["ChecksumMode"] = "ENABLED"
        data, ranged = self._download(key, request)
        return data if ranged else data[start:end]  # some vendors ignore a range

    def fetch(self, key: str, into: memoryview) -> int:
        """See `Fetcher.fetch`."""
        reason: BaseException | None = None
        for attempt in range(ATTEMPTS):
            try:
                return self._bulk.fetch(self._object(key), into)
            except BodyBroken as error:
                reason = error.__cause__
            except FAULTS as error:
                self._raise(error, key)
            time.sleep(PAUSE_S * 2**attempt)
        raise StoreUnavailable(f"store {self.url}: {key} breaks off in mid-read ({reason!r})") from reason

    def head(self, key: str) -> Entry:
        """See `Store.head`."""
        found = self._call("head_object", key)
        return Entry(key, found["ContentLength"], found["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`."""
        # Sorted here, since vendors that keep folders (SeaweedFS) give `a/b` before `a-b`.
        yield from sorted(self._unordered(prefix))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        try:
            self._call("delete_object", key)
        except KeyMissing:
            return  # some vendors say so

    def check(self) -> Abilities:
        """See `Store.check`."""
        try:
            return probe(self)
        except StoreError as error:
            raise UserError(str(error)) from error

    def _label(self, key: str) -> str | None:
        """Return what the create of this object called itself."""
        try:
            label: str | None = self._call("head_object", key).get("Metadata", {}).get(LABEL)
        except KeyMissing:
            return None
        return label

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + valid_key(key)}

    def _unordered(self, prefix: str) -> Iterator[Entry]:
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", None, Prefix=self._prefix + prefix, **more)
            for found in page.get("Contents", []):
                modified: datetime = found["LastModified"]
                yield Entry(found["Key"].removeprefix(self._prefix), found["Size"], modified.timestamp())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _connection(self) -> Any:
        """Return the file system of this process; making one sends nothing."""
        process = os.getpid()
        if process not in self._connections:
            self._connections.setdefault(process, _connect(self._endpoint))
        return self._connections[process]

    def _call(self, operation: str, key: str | None, **request: Any) -> dict[str, Any]:
        """Send one request, again if it fails in passing, and map what goes wrong."""
        target = {"Bucket": self._bucket} if key is None else self._object(key)
        try:
            answer: dict[str, Any] = self._connection().call_s3(operation, **target, **request)
        except FAULTS as error:
            self._raise(error, key)
        return answer

    def _download(self, key: str, request: dict[str, Any]) -> tuple[bytes, bool]:
        """Return the body, and whether it is the range that was asked for."""
        for attempt in range(ATTEMPTS):
            try:
                connection = self._connection()
                answer: tuple[bytes, bool] = sync(connection.loop, _get, connection, request)
                return answer
            except BodyBroken as error:
                reason = error.__cause__
            except FAULTS as error:
                if _status(error) == 416:  # starts at or beyond the end
                    return b"", True
                self._raise(error, key)
            time.sleep(PAUSE_S * 2**attempt)
        raise StoreUnavailable(f"store {self.url}: {key} breaks off in mid-read ({reason!r})") from reason

    def _raise(self, error: BaseException, key: str | None) -> NoReturn:
        """Raise the project's error for one of `FAULTS`, caused by it."""
        code, status = _code(error), _status(error)
        if key is not None and status == 412:
            raise KeyExists(f"{self.url}/{key}") from error
        if key is not None and (code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound"))):
            raise KeyMissing(f"{self.url}/{key}") from error
        where = self._endpoint or "AWS"
        raise StoreUnavailable(f"store {self.url} at {where}: {_remedy(error)}") from error


async def _get(connection: Any, request: dict[str, Any]) -> tuple[bytes, bool]:
    answer = await connection._call_s3("get_object", **request)
    try:
        async with answer["Body"] as body:
            data: bytes = await body.read()
    except FAULTS as error:
        raise BodyBroken from error
    return data, "ContentRange" in answer


async def _put_in_parts(connection: Any, target: dict[str, Any], data: memoryview) -> None:
    """Upload in parts, a few at once; a failed upload leaves no parts behind, a killed one does."""
    call = connection._call_s3
    upload = await call("create_multipart_upload", **target, ChecksumAlgorithm="CRC32")
    target = {**target, "UploadId": upload["UploadId"]}
    step = max(PART_BYTES, -(-len(data) // PARTS_LIMIT))
    slots = asyncio.Semaphore(PARTS_AT_ONCE)

    async def send(number: int) -> dict[str, Any]:
        async with slots:
            part = bytes(data[(number - 1) * step : number * step])
            label = {"PartNumber": number, "ChecksumCRC32": _crc32(part)}
            return {**label, "ETag": (await call("upload_part", **target, **label, Body=part))["ETag"]}

    try:
        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(send(1 + i)) for i in range(-(-len(data) // step))]
        parts = [task.result() for task in sent]
        await call("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
    except BaseException as error:
        await asyncio.gather(call("abort_multipart_upload", **target), return_exceptions=True)
        if isinstance(error, BaseExceptionGroup):  # of several parts, the first to fail speaks
            raise error.exceptions[0] from error.exceptions[0].__cause__
        raise


def _connect(endpoint: str | None) -> Any:
    """An s3fs file system that caches nothing and leaves retries to botocore, which counts them."""
    connection = S3FileSystem(
        endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True, config_kwargs=client_config(endpoint)
    )
    connection.retries = 1
    return connection


def _body(data: bytes | memoryview) -> bytes:
    return data if isinstance(data, bytes) else bytes(data)


def _crc32(data: bytes | memoryview) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _answer(error: BaseException | None) -> dict[str, Any]:
    """What the server answered; empty if it did not. s3fs wraps the error that knows."""
    while error is not None:
        if isinstance(error, ClientError):
            answer: dict[str, Any] = error.response
            return answer
        error = error.__cause__
    return {}


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException | None) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _remedy(error: BaseException) -> str:
    """What went wrong and what to do about it, in one line."""
    if isinstance(error, NoCredentialsError):
        return NO_CREDENTIALS
    if isinstance(error, NoConnection):
        return f"{NO_SERVER} ({error})"
    code = _code(error)
    if code == "403" or (not code and _status(error) == 403):
        code = "AccessDenied"
    message = _answer(error).get("Error", {}).get("Message") or str(error) or type(error).__name__
    said = " ".join(f"{code} {message}".split())
    return f"{REMEDIES[code]} ({said})" if code in REMEDIES else said


def open_store(url: str) -> S3Store:
    """Open the store at `s3://bucket/prefix`. Nothing is sent yet.

    Raises:
        UserError: the URL has no bucket or no usable prefix, or the endpoint is no URL.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    try:
        valid_key(f"{bucket}/{prefix}" if prefix else bucket)
    except ValueError as error:
        raise UserError(f"store {url!r}: write s3://bucket/prefix") from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"store {url}: AWS_ENDPOINT_URL={endpoint} must start with http:// or https://")
    return S3Store(bucket, prefix, endpoint)

"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.testbed.s3 import BinaryMissing, S3Server, s3_server

# No deadline, and no look at how long drawing takes: a busy machine is no failure. No database: tests leave no files.
settings.register_profile("fglaunch", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fglaunch")


def running(kind: str) -> Iterator[S3Server]:
    try:
        with s3_server(kind) as server:
            yield server
    except BinaryMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """The S3 server that keeps its promises."""
    yield from running("seaweedfs")


@pytest.fixture(scope="session")
def localbucket() -> Iterator[S3Server]:
    """An S3 server that starts quickly and checks no credentials."""
    yield from running("localbucket")


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3Server]:
    """An S3 server that ignores conditions on writes."""
    yield from running("rclone")

"""Every store against the contract, and what is particular to each."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from fgtrain.stores import Store, open_store
from tests.contracts.store import SharedStoreContract, StoreContract
from tests.testbed.s3 import S3Server


def s3_store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own on this server, opened as a user would: by URL and environment."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{server.bucket}/运行/{uuid.uuid4()}")


class TestFileStore(SharedStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(f"file://{tmp_path}/运行 a%20b/#1")


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://{uuid.uuid4()}")


class TestS3OnSeaweedFS(SharedStoreContract):
    races = 1  # its lock is polled once a second, so that a race takes up to five

    @pytest.fixture
    def store(self, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
        return s3_store(seaweedfs, monkeypatch)

"""Programs on a host: known and killed when their records are gone."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import _host
from cluster import _host_processes as processes
from tests.contracts.cluster import PAUSE, lives
from tests.testbed.runs import wait_for

RECORD = {
    "nonce": "1",
    "pid": 1 << 22,
    "token": "t",
    "keeper": 1 << 22,
    "keeper_token": "t",
    "mark": "m",
    "started": 0.0,
}


@pytest.fixture
def record(tmp_path: Path) -> Iterator[dict[str, Any]]:
    started = processes.start(str(tmp_path / "node"), "agent", "1", [sys.executable, "-c", PAUSE], {}, str(tmp_path))
    yield started
    for pid in (started["pid"], started["keeper"]):
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def ask(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a host answers to requests that come over one connection."""
    lines = [json.dumps({"id": i, **request}).encode() + b"\n" for i, request in enumerate(requests)]
    sink = io.BytesIO()
    _host.serve(io.BytesIO(b"".join(lines)), sink)
    return [json.loads(line) for line in sink.getvalue().removeprefix(_host.READY).splitlines()]


def test_program_whose_records_are_gone_is_known_by_the_record_that_its_starter_has(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    shutil.rmtree(tmp_path / "node")  # a scratch disk that was cleaned
    which = {"folder": str(tmp_path / "node"), "name": "agent", "record": record}
    assert ask({"do": "status", **which})[0]["value"] is None
    wait_for(lambda: ask({"do": "kill", **which})[0]["value"] == -signal.SIGKILL, "it is killed", 60)
    assert not lives(record["pid"])
    assert processes.find(which["folder"], "agent") is None


def test_program_of_before_a_reboot_counts_as_killed(tmp_path: Path) -> None:
    which = {"folder": str(tmp_path / "gone"), "name": "agent", "record": RECORD}
    assert [a["value"] for a in ask({"do": "status", **which}, {"do": "kill", **which})] == [
        -signal.SIGKILL,
        -signal.SIGKILL,
    ]

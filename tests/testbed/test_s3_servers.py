"""Servers of tests end with the tests, however those end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.testbed.s3 import BinaryMissing, binary, s3_server

STARTER = """
import sys, time
from tests.testbed.s3 import s3_server
with s3_server("localbucket") as server:
    print(server.proc.pid, flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.readline()
    sys.exit("gives up")
"""
GONE_S = 240


@pytest.mark.parametrize("end", ["wait", "exit"])
def test_server_ends_with_the_process_that_started_it(end: str) -> None:
    try:
        binary("localbucket")
    except BinaryMissing as missing:
        pytest.skip(str(missing))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    with starter:
        assert starter.stdout is not None
        server = int(starter.stdout.readline())
        if end == "wait":
            assert psutil.pid_exists(server)
            starter.kill()
    deadline = time.monotonic() + GONE_S
    while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.02)


def test_unknown_binary_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BinaryMissing, match="no rclone"), s3_server("rclone"):
        pass

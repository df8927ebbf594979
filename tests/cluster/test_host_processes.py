"""Programs on a host: known and killed when their records are gone, and when they do not end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, Command, Unreachable, _host, _marks
from cluster import _host_processes as processes
from cluster._ssh_link import Answer
from cluster.local import LocalCluster
from cluster.ssh import SshProcess
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
    wait_for(lambda: ask({"do": "kill", **which})[0]["value"]["code"] == -signal.SIGKILL, "it is killed", 240)
    assert not lives(record["pid"])
    assert processes.find(which["folder"], "agent") is None


def test_program_of_before_a_reboot_counts_as_killed(tmp_path: Path) -> None:
    which = {"folder": str(tmp_path / "gone"), "name": "agent", "record": RECORD}
    assert [a["value"] for a in ask({"do": "status", **which}, {"do": "kill", **which})] == [
        -signal.SIGKILL,
        {"left": [], "spelled": "", "code": -signal.SIGKILL},
    ]


def test_program_that_ended_before_its_keeper_looked_is_not_there(tmp_path: Path) -> None:
    which = {"folder": str(tmp_path / "node"), "name": "agent", "record": RECORD | {"token": None}}
    assert [a["value"] for a in ask({"do": "status", **which}, {"do": "kill", **which})] == [
        -signal.SIGKILL,
        {"left": [], "spelled": "", "code": -signal.SIGKILL},
    ]


@pytest.fixture
def immortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGKILL does nothing, as to what waits in the kernel."""
    kill, killpg = os.kill, os.killpg
    monkeypatch.setattr(os, "kill", lambda pid, sig: None if sig == signal.SIGKILL else kill(pid, sig))
    monkeypatch.setattr(os, "killpg", lambda pid, sig: None if sig == signal.SIGKILL else killpg(pid, sig))
    yield
    monkeypatch.undo()


def test_host_goes_on_answering_while_a_program_does_not_end(
    tmp_path: Path, record: dict[str, Any], immortal: None
) -> None:
    which = {"folder": str(tmp_path / "node"), "name": "agent", "record": record}
    answers: list[dict[str, Any]] = []

    def serve() -> None:
        answers.extend(ask({"do": "kill", **which}, {"do": "make_folder", "folder": str(tmp_path / "other")}))

    threading.Thread(target=serve, daemon=True).start()
    wait_for(lambda: len(answers) == 2, "both requests are answered", 240)
    assert answers[0]["value"]["left"] == [record["pid"]]
    assert answers[0]["value"]["code"] is None


def test_kill_of_what_does_not_end_gives_up_and_names_it(
    tmp_path: Path, immortal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_marks, "END_S", 0.3)
    cluster = LocalCluster(tmp_path, tmp_path)
    [node] = cluster.nodes("run", 1)
    cluster.make_ready(node)
    process = cluster.start(node, Command("agent", (sys.executable, "-c", PAUSE), {}))
    try:
        with pytest.raises(ClusterError, match=rf"node0: agent cannot be killed: {process.pid} \([A-Z]\) wait"):
            process.kill()
        assert process.poll() is None
    finally:
        monkeypatch.undo()
        process.kill()


def test_who_is_gone_at_a_second_look_did_end_however_slow_the_first_was() -> None:
    there = [[7], []]

    def strike() -> list[int]:
        time.sleep(0.05)  # longer than all of the time
        return there.pop(0)

    assert _marks.end(strike, 0.01) == []


class Far:
    """A host that answers to a kill as it is told to, and else as if all were well."""

    def __init__(self, *said: dict[str, Any] | Unreachable) -> None:
        self.target = type("Target", (), {"host": "gpu1"})
        self._said = list(said)

    def ask(self, action: str, **arguments: Any) -> Answer:
        said = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        if isinstance(said, Unreachable):
            raise said
        return Answer(said, b"")

    def glance(self, action: str, **arguments: Any) -> Answer:
        return Answer(None, b"")


STUCK = {"left": [7], "spelled": "7 (D)", "code": None}


def far(*said: dict[str, Any] | Unreachable) -> SshProcess:
    return SshProcess(Far(*said), "/work/run/gpu1", "agent", RECORD)  # type: ignore[arg-type]


def test_kill_over_ssh_asks_until_all_is_gone() -> None:
    process = far(STUCK, {"left": [], "spelled": "", "code": None}, {"left": [], "spelled": "", "code": -9})
    process.kill()
    assert process.poll() == -9


def test_kill_over_ssh_gives_up_on_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_marks, "END_S", 0.1)
    process = far(STUCK)
    with pytest.raises(ClusterError, match=r"gpu1: agent cannot be killed: 7 \(D\) wait in the kernel"):
        process.kill()
    assert process.poll() is None


def test_kill_on_a_host_that_does_not_answer_leaves_open_what_became_of_it() -> None:
    process = far(Unreachable("gpu1 does not answer"))
    process.kill()
    assert process.poll() is None

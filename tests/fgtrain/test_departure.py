"""A node's agent and its attendant: signals become notices, and the last lines arrive whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fgtrain import departure as departures
from fgtrain import logs, notices
from fgtrain.departure import Departure, attended, node_name
from fgtrain.errors import UserError
from fgtrain.notice import Flag, Notice, NoticeRecord
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.metadata import metadata_service
from tests.testbed.runs import ROOT, wait_for

AGENT = """
import os, signal, sys
from pathlib import Path
from fgtrain.departure import attended
store, folder = sys.argv[1:]
with attended(store, "r", folder, "node0"):
    print("ready", flush=True)
    sys.stdin.readline()
    Path(folder, "logs", "00001-00000.log").write_text("the last line")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("SLURM_JOB_ID", "FGLAUNCH_POD_ENDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(notices.VARIABLE, "off")
    monkeypatch.setattr(departures, "_ATTENDANT_END_S", 240.0)  # one that has only just begun may start slowly
    before = signal.getsignal(signal.SIGUSR1)
    (tmp_path / "node0" / "logs").mkdir(parents=True)
    yield tmp_path / "node0"
    signal.signal(signal.SIGUSR1, before)


def runs(tmp_path: Path) -> RunStore:
    return RunStore(open_store(str(tmp_path / "store")), "r")


def stored(run: RunStore) -> dict[str, bytes]:
    return {stream.name: run.store.get(segment.key) for stream, segment in logs.segments(run)}


def attendants() -> list[psutil.Process]:
    """Return those beside this process; another child may end while it is looked at."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and "fgtrain.attendant" in child.cmdline():
                found.append(child)
    return found


def test_new_agent_does_not_leave_because_the_last_one_had_to(folder: Path) -> None:
    Flag(folder).raise_(Notice(source="aws", what="", id="1", loss=True, time=0.0), leave=True, now=0.0)
    assert not Departure(folder, "node0").flag.leaves


def test_sigusr1_asks_the_node_to_leave(folder: Path) -> None:
    departure = Departure(folder, "node0")
    assert not departure.flag.leaves
    signal.raise_signal(signal.SIGUSR1)
    assert departure.flag.leaves


def test_bare_sigterm_is_the_supervisors_and_no_notice(folder: Path) -> None:
    departure = Departure(folder, "node0")
    departure.signalled(signal.SIGTERM)
    assert departure.flag.read() is None


def test_sigterm_in_a_pod_is_the_supervisors_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("FGLAUNCH_POD_ENDS", str(folder / "ends"))
    monkeypatch.delenv(notices.VARIABLE)
    departure = Departure(folder, "node0")
    departure.signalled(signal.SIGTERM)
    assert departure.flag.read() is None


def test_senseless_setting_ends_the_agent_with_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notices.VARIABLE, "asw")
    with pytest.raises(UserError, match="no source 'asw'"):
        Departure(folder, "node0")


def test_node_is_called_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGLAUNCH_NODE", raising=False)
    assert node_name("/work/run/node3") == "node3"
    monkeypatch.setenv("FGLAUNCH_NODE", "gpu-7")
    assert node_name("/work/run/node3") == "gpu-7"


def test_attendant_ships_what_was_written_and_tells_of_signals(tmp_path: Path, folder: Path) -> None:
    departure = Departure(folder, "node0")
    with attended(str(tmp_path / "store"), "r", str(folder), "node0"):
        (folder / "logs" / "00001-00000.log").write_text("hello")
        signal.raise_signal(signal.SIGUSR1)
    assert stored(runs(tmp_path))["00001-00000"] == b"hello"
    [record] = runs(tmp_path).read_all("notices", NoticeRecord)
    assert (record.node, record.notice.what) == ("node0", "SIGUSR1")
    assert "node0: notice from signal: SIGUSR1" in (folder / "events.jsonl").read_text()
    assert departure.flag.leaves


def test_attendant_passes_on_what_the_cloud_says_and_lets_azure_go_ahead(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with metadata_service() as service:
        monkeypatch.setenv(notices.VARIABLE, f"azure={service.url}")
        service.events = [{"EventId": "e", "EventType": "Preempt", "Resources": ["vm-1"], "NotBefore": ""}]
        departure = Departure(folder, "node0")
        with attended(str(tmp_path / "store"), "r", str(folder), "node0"):
            wait_for(lambda: departure.flag.leaves, "the ranks are told", 240)
            wait_for(lambda: runs(tmp_path).read_all("notices", NoticeRecord), "the store is told", 240)
            assert service.approved == []  # the node has not left yet
        assert service.approved == ["e"]


def test_killed_agents_attendant_ships_the_last_lines_and_ends(tmp_path: Path, folder: Path) -> None:
    argv = [sys.executable, "-c", AGENT, str(tmp_path / "store"), str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as agent:
        assert agent.stdin and agent.stdout
        assert agent.stdout.readline() == b"ready\n"
        [attendant] = psutil.Process(agent.pid).children()
        agent.stdin.write(b"\n")
        agent.stdin.flush()
        assert agent.wait(240) == -signal.SIGKILL
        attendant.wait(240)
    assert stored(runs(tmp_path))["00001-00000"] == b"the last line"


def test_attendant_that_alone_dies_is_started_again(tmp_path: Path, folder: Path) -> None:
    with attended(str(tmp_path / "store"), "r", str(folder), "node0"):
        [first] = attendants()
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: [p for p in attendants() if p.pid != first.pid], "another is there")
        (folder / "logs" / "00001-00000.log").write_text("hello")
    assert stored(runs(tmp_path))["00001-00000"] == b"hello"
    assert attendants() == []


def test_attendant_minds_no_signal_of_its_own(tmp_path: Path, folder: Path) -> None:
    """A scheduler signals every process of a job; the log must still be shipped to the end."""
    with attended(str(tmp_path / "store"), "r", str(folder), "node0"):
        (folder / "logs" / "00001-00000.log").write_text("a")
        wait_for(lambda: stored(runs(tmp_path)), "it is at work", 240)
        [attendant] = attendants()
        for sig in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(attendant.pid, sig)
        with (folder / "logs" / "00001-00000.log").open("a") as file:
            file.write("b")
    assert b"".join(v for k, v in sorted(stored(runs(tmp_path)).items())).endswith(b"b")


def test_agent_that_begins_anew_in_place_still_leaves(folder: Path) -> None:
    """Cut off from its store, an agent replaces itself: what the node was told holds for the same life of it."""
    Departure(folder, "node0")
    signal.raise_signal(signal.SIGUSR1)
    assert Departure(folder, "node0", again=True).flag.leaves
    assert not Departure(folder, "node0").flag.leaves

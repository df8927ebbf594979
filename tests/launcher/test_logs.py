"""`fglaunch logs`: a run's logs through the store, from any machine, and from files where they know more."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgtrain import logs
from fgtrain.plan import World
from fgtrain.runstore import Attempt, RunStore
from fgtrain.stores import open_store
from launcher.cli import main
from launcher.commands.logs import Follower, may_go_on
from launcher.logview import View, Wanted
from launcher.status import Status, process_token
from launcher.takeover import take_office
from tests.fgtrain.test_runstore import run_file
from tests.testbed.s3 import S3Server


class Written:
    """A run with logs in its store, and on this machine if a test puts them there."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder / "node0"
        (self.folder / "logs").mkdir(parents=True)
        self.runs = RunStore(open_store(url), "r")
        self.runs.write("run.json", run_file("r"))

    def attempt(self, number: int, started: float = 0.0) -> None:
        self.runs.write(f"attempts/{number:05d}.json", Attempt(attempt=number, step=0, world=2, started=started))

    def put(self, stream: logs.Stream, start: int, data: bytes) -> None:
        self.runs.store.put(logs.segment_key(self.runs, stream, start), data)

    def says(self, state: str, *, alive: bool = True) -> None:
        """Have a supervisor say how the run stands, one that still lives or does not."""
        if state:
            known = {"host": socket.gethostname(), "pid": os.getpid(), "token": process_token(os.getpid()) or ""}
            known |= {} if alive else {"token": "of a process before this one"}
            self.runs.write("status.json", Status(state=state, step=1, steps=9, updated=time.time(), nodes=(), **known))

    def view(self, wanted: Wanted, *, here: bool = False) -> View:
        return View(self.runs, lambda: [self.folder] if here else [self.folder / "not here"], wanted)


@pytest.fixture
def run(tmp_path: Path) -> Written:
    return Written(str(tmp_path / "store"), tmp_path)


def text(view: View) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for stream, data in view.new():
        found[stream.name] = found.get(stream.name, b"") + data
    return found


def fill(run: Written) -> None:
    run.attempt(1)
    run.attempt(2)
    for attempt, rank in ((1, 0), (1, 1), (2, 0), (2, 10), (2, 2)):
        run.put(logs.rank_stream(attempt, rank), 0, f"{attempt}:{rank}\n".encode())


def test_newest_attempt_in_order_of_rank(run: Written) -> None:
    fill(run)
    assert list(text(run.view(Wanted()))) == ["00002-00000", "00002-00002", "00002-00010"]
    assert text(run.view(Wanted(attempt=1))) == {"00001-00000": b"1:0\n", "00001-00001": b"1:1\n"}
    assert text(run.view(Wanted(rank=10))) == {"00002-00010": b"2:10\n"}
    assert text(run.view(Wanted(attempt=3))) == {}


def test_following_gives_each_byte_once_and_goes_on_to_a_new_attempt(run: Written) -> None:
    run.attempt(1)
    view, stream = run.view(Wanted()), logs.rank_stream(1, 0)
    run.put(stream, 0, b"ab")
    assert text(view) == {stream.name: b"ab"}
    assert text(view) == {}
    run.put(stream, 2, b"cd")
    run.put(stream, 3, b"de")  # two shippers, after a lost answer
    assert text(view) == {stream.name: b"cde"}
    run.attempt(2)
    run.put(logs.rank_stream(2, 0), 0, b"new")
    assert text(view) == {"00002-00000": b"new"}


def test_file_of_this_machine_is_read_where_it_is_longer(run: Written) -> None:
    run.attempt(1)
    run.put(logs.rank_stream(1, 0), 0, b"ab")
    run.put(logs.rank_stream(1, 1), 0, b"shipped")
    (run.folder / "logs" / "00001-00000.log").write_bytes(b"abc")
    (run.folder / "logs" / "00001-00001.log").write_bytes(b"")
    view = run.view(Wanted(), here=True)
    assert text(view) == {"00001-00000": b"abc", "00001-00001": b"shipped"}
    assert text(run.view(Wanted())) == {"00001-00000": b"ab", "00001-00001": b"shipped"}
    with (run.folder / "logs" / "00001-00000.log").open("ab") as file:
        file.write(b"d")
    assert text(view) == {"00001-00000": b"d"}


def test_what_was_not_shipped_is_named(run: Written) -> None:
    run.attempt(1)
    run.put(logs.rank_stream(1, 0), 0, b"ab")
    run.put(logs.rank_stream(1, 0), 5000, b"yz")
    assert text(run.view(Wanted()))["00001-00000"] == b"ab\n[4,998 bytes were not shipped]\nyz"


def test_ranks_that_ended_before_any_attempt_are_shown(run: Written) -> None:
    run.put(logs.starting_stream("node0", 7), 0, b"ModuleNotFoundError\n")
    (run.folder / "logs" / "starting-7.log").write_bytes(b"ModuleNotFoundError\n!")
    assert text(run.view(Wanted())) == {"starting-node0-7": b"ModuleNotFoundError\n"}
    assert text(run.view(Wanted(), here=True)) == {"starting-node0-7": b"ModuleNotFoundError\n!"}
    run.attempt(1, started=1.0)  # long before that log
    run.put(logs.rank_stream(1, 0), 0, b"fine")
    assert list(text(run.view(Wanted()))) == ["00001-00000", "starting-node0-7"]
    assert list(text(run.view(Wanted(rank=0)))) == ["00001-00000"]
    run.attempt(2, started=9e9)  # long after
    assert list(text(run.view(Wanted()))) == []
    assert list(text(run.view(Wanted(attempt=0)))) == ["starting-node0-7"]


def test_agents_are_shown_apart_the_newest_life_of_each(run: Written) -> None:
    fill(run)
    for program, node, start in (("agent", "node0", 1), ("agent", "node0", 20), ("agent", "node1", 3)):
        run.put(logs.node_stream(program, node, start), 0, f"{node} {start}".encode())
    assert sorted(text(run.view(Wanted(agents=True))).values()) == [b"node0 20", b"node1 3"]
    (run.folder / "agent.log").write_bytes(b"both lives")
    assert sorted(text(run.view(Wanted(agents=True), here=True)).values()) == [b"both lives", b"node1 3"]


def test_command_prints_whose_lines_they_are(run: Written, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    fill(run)
    assert main(["logs", "r", "--attempt", "1", "--store", run.url]) == 0
    assert capsysbinary.readouterr().out == b"--- attempt 1, rank 0\n1:0\n--- attempt 1, rank 1\n1:1\n"
    run.says("finished")
    assert main(["logs", "r", "-f", "--rank", "2", "--store", run.url]) == 0
    assert capsysbinary.readouterr().out == b"--- attempt 2, rank 2\n2:2\n"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_following_ends_with_the_run(run: Written, state: str) -> None:
    run.says(state)
    assert Follower(run.runs, lambda: True).ended()


def test_following_goes_on_while_more_may_come(run: Written, capsys: pytest.CaptureFixture[str]) -> None:
    times, answers = iter([0.0, 0.0, 1.0, 20.0, 20.0, 40.0, 40.0]), iter([True, True, False])
    follower = Follower(run.runs, lambda: next(answers), lambda: next(times))
    for state in ("", "waiting", "running"):
        run.says(state)
        assert not follower.ended()
    run.says("running", alive=False)
    assert [follower.ended() for _ in range(4)] == [False, False, False, True]
    begins, lost, over = capsys.readouterr().err.splitlines()
    assert "r has not begun" in begins
    assert "r has no supervisor any more; what its nodes may still write" in lost
    assert "nothing of it runs; `fglaunch resume r" in over


def test_what_goes_on_without_its_supervisor_is_seen_where_it_can_be(
    run: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "none.toml"))
    fill(run)
    run.says("running", alive=False)
    assert not may_go_on(run_file("r"), run.runs)  # no supervisor has started anything
    take_office(run.runs, "lab", World(1, 1))
    assert may_go_on(run_file("r"), run.runs), "nobody here knows this cluster"
    take_office(run.runs, "local", World(1, 1))
    assert not may_go_on(run_file("r"), run.runs)  # all ends with the supervisor
    assert main(["logs", "r", "-f", "--rank", "2", "--store", run.url]) == 0
    assert capsysbinary.readouterr().out == b"--- attempt 2, rank 2\n2:2\n"


def test_what_is_not_there_is_one_line(run: Written, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "r", "--store", run.url]) == 2
    assert "r: no such logs (attempt any, rank any)" in capsys.readouterr().err
    assert main(["logs", "r", "--agents", "--rank", "1", "--store", run.url]) == 2
    assert "--agents" in capsys.readouterr().err


@pytest.fixture
def bucket(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in seaweedfs.env.items():
        monkeypatch.setenv(name, value)
    yield f"s3://{seaweedfs.bucket}/logs"


def test_object_store_serves_logs_as_a_folder_does(bucket: str, tmp_path: Path) -> None:
    run = Written(bucket, tmp_path)
    fill(run)
    view = run.view(Wanted())
    assert list(text(view)) == ["00002-00000", "00002-00002", "00002-00010"]
    run.put(logs.rank_stream(2, 0), 4, "末\n".encode())
    assert text(view) == {"00002-00000": "末\n".encode()}

"""What is read of a run from outside: its status, its events, its log files, its recipe's values."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from fgtrain.errors import StoreUnavailable
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from fgtrain.stores.memory import MemoryStore
from launcher.cli import main
from launcher.display import PlainDisplay, spell
from launcher.events import decode_events, whole_lines
from launcher.status import Status, live_state, process_token, read_status
from tests.fgtrain.test_runstore import run_file


def status(**changes: Any) -> Status:
    fields: dict[str, Any] = {
        "state": "running",
        "step": 1,
        "steps": 9,
        "updated": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": process_token(os.getpid()),
        "nodes": (),
    }
    return Status(**(fields | changes))


def state(found: Status | None) -> str:
    """Return a run's state where no store is needed to tell."""
    return live_state(found, RunStore(open_store("memory://nothing"), "run"))


def test_run_is_running_while_its_supervisor_lives() -> None:
    assert state(status()) == "running"
    assert state(status(updated=0.0)) == "running"
    assert state(None) == "created"
    assert state(status(state="finished")) == "finished"


@pytest.mark.parametrize(
    ("state", "told", "code"), [("stopped", 1, 1), ("stopped", 0, 0), ("stopped", None, 0), ("failed", 2, 2)]
)
def test_attach_to_a_run_that_has_ended_returns_what_its_supervisor_did(
    state: str, told: int | None, code: int, tmp_path: Path
) -> None:
    runs = RunStore(open_store(f"file://{tmp_path}"), run_file().name)
    runs.create("run.json", run_file())
    runs.write("status.json", status(state=state, message="why", exit_code=told))
    assert main(["attach", runs.run, "--store", str(tmp_path)]) == code


class Elsewhere:
    """A run that is supervised on a host whose clock may be wrong, in a store whose clock may be, too.

    It is looked at by a clock that only the test moves, `now`: this has the methods of `time` that a look asks.
    """

    def __init__(self, patch: pytest.MonkeyPatch, skew_s: float = 0.0, store_skew_s: float = 0.0) -> None:
        self.now, self._skew_s, self._store_skew_s = 1e9, skew_s, store_skew_s
        self.store = MemoryStore(f"watching-{uuid.uuid4()}", self.clock)
        self.runs = RunStore(self.store, "run")
        self.probes = 0
        patch.setattr("launcher.status.time", self)

    def time(self) -> float:
        return self.now

    monotonic = time

    def clock(self) -> float:
        self.probes += 1
        return self.now + self._store_skew_s

    def beats(self) -> None:
        self.runs.write("status.json", status(host="elsewhere", updated=self.now + self._skew_s))
        self.probes = 0

    def state(self) -> str:
        return live_state(read_status(self.runs), self.runs)


def test_supervisor_on_another_host_is_lost_when_it_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Elsewhere(monkeypatch)
    run.beats()
    run.now += 29.0
    assert run.state() == "running"
    run.now += 2.0
    assert run.state() == "lost"


@pytest.mark.parametrize("store_skew_s", [0.0, -9999.0, 9999.0])
@pytest.mark.parametrize("skew_s", [-3600.0, -31.0, 37.0, 3600.0])
def test_heartbeat_by_another_clock_is_judged_by_the_stores(
    monkeypatch: pytest.MonkeyPatch, skew_s: float, store_skew_s: float
) -> None:
    run = Elsewhere(monkeypatch, skew_s, store_skew_s)
    run.beats()
    run.now += 3.0
    assert [run.state() for _ in range(5)] == ["running"] * 5
    assert run.probes == 1, "the time is asked for once a heartbeat"
    run.beats()
    run.now += 31.0
    assert run.state() == "lost"
    run.beats()
    assert run.state() == "running"


def test_where_the_store_does_not_tell_the_time_clocks_have_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Elsewhere(monkeypatch, -60.0)
    run.beats()

    def refuse(key: str, data: bytes) -> None:
        raise StoreUnavailable("read only")

    monkeypatch.setattr(run.store, "put", refuse)
    assert run.state() == "lost"


def test_number_of_a_dead_supervisor_that_another_process_has_now_is_no_sign_of_life() -> None:
    assert state(status(token="of a process before this one")) == "lost"


def test_killed_supervisor_is_lost_even_before_its_parent_takes_note() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        before = status(pid=process.pid, token=process_token(process.pid))
        assert state(before) == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, a zombie still
        assert state(before) == "lost"
    assert process_token(process.pid) is None


def test_half_a_line_waits_and_rubbish_is_passed_over() -> None:
    data = b'{"event": "a"}\n{"eve{"event": "b"}\n3\n{"event": "c"}\n{"event": "d"'
    whole = whole_lines(data)
    assert data[len(whole) :] == b'{"event": "d"'
    assert [e["event"] for e in decode_events(whole)] == ["a", "c"]
    assert whole_lines(b"no end") == b""


def test_plain_display_writes_a_line_an_event_and_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay()
    step = {"event": "step", "step": 1, "epoch": 0.1, "loss": 2.0, "lr": 0.1, "images_per_s": 100.0}
    for number in range(50):
        display(step | {"step": number})
    display({"event": "snapshot", "step": 50, "bytes_new": 1234567, "bytes_shared": 0})
    display({"event": "attempt", "attempt": 2, "step": 50, "steps": 90, "world": 4})
    display({"event": "unheard of"})
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 0  epoch 0.10  loss 2.0000")
    assert lines[1:] == ["snapshot of step 50: 1,234,567 bytes new", "attempt 2: from step 50 of 90, 4 processes"]


def test_note_is_shown_as_it_is() -> None:
    assert spell({"event": "note", "text": "[bold] stays"}) == "[bold] stays"


def test_unreadable_run_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(tmp_path))
    RunStore(store, "good").create("run.json", run_file("good"))
    store.put("runs/bad/run.json", b"{")
    assert main(["ps", "--json", "--store", str(tmp_path)]) == 0
    rows = {r["run"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["good"]["state"] == "created"
    assert rows["bad"]["state"] == "unreadable"
    assert "run.json" in rows["bad"]["message"]
    assert main(["ps", "--store", str(tmp_path)]) == 0
    assert "good" in capsys.readouterr().out


def test_empty_store_lists_nothing_and_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--json", "--store", str(tmp_path / "new")]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert not (tmp_path / "new").exists()


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, tuple[Any, str]]:
    assert main(["show", "recipes/quickstart.py", *args, "--json"]) == 0
    return {r["path"]: (r["value"], r["source"]) for r in json.loads(capsys.readouterr().out)}


def test_show_tells_where_each_value_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    rows = shown(capsys, "--set", "seed=5", "--set", "ema.decay=0.5", "--set", "schedule=constant")
    assert rows["optim.lr"] == (0.003, "recipes/quickstart.py")
    assert rows["optim.eps"] == (1e-8, "default")
    assert rows["seed"] == (5, "--set")
    assert rows["ema.decay"] == (0.5, "--set")
    assert rows["schedule"] == ("constant", "--set")
    assert rows["schedule.warmup_epochs"] == (0.0, "--set")
    assert rows["model"] == ("timm", "recipes/quickstart.py")


def test_show_takes_a_constant_by_name_and_the_last_of_two_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "two.py"
    text = Path("recipes/quickstart.py").read_text(encoding="utf-8")
    recipe.write_text(text + "\nfrom fgtrain.recipe import replace\nSMALL = replace(RECIPE, epochs=1)\n")
    assert main(["show", f"{recipe}:SMALL", "--set", "seed=1", "--set", "seed=2", "--json"]) == 0
    rows = {r["path"]: r["value"] for r in json.loads(capsys.readouterr().out)}
    assert (rows["epochs"], rows["seed"]) == (1.0, 2)


def test_show_prints_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "recipes/quickstart.py"]) == 0
    assert '"test_resnet"' in capsys.readouterr().out


def test_recipes_with_neighbours_of_one_name_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("recipes/quickstart.py").read_text(encoding="utf-8").replace("epochs=20", "epochs=EPOCHS")
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "settings.py").write_text(f"EPOCHS = {number}")
        (folder / "r.py").write_text(f"from settings import EPOCHS\n{text}", encoding="utf-8")
        assert main(["show", str(folder / "r.py"), "--json"]) == 0
        rows = {r["path"]: r["value"] for r in json.loads(capsys.readouterr().out)}
        assert rows["epochs"] == number


def test_phases_of_a_start_are_one_line_without_what_took_no_time() -> None:
    seconds = {"detect": 3.02, "stop": 0.001, "meet": 0.1, "step": 0.25, "total": 3.371}
    event = {"event": "phases", "attempt": 2, "why": "node1 silent for 3.0 s", "seconds": seconds}
    line = "attempt 2: first step in 3.4 s after node1 silent for 3.0 s (detect 3.0, meet 0.1, step 0.2)"
    assert spell(event) == line

"""A run that goes on in the background: whoever starts it is told so, however quick it is. The process is played."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from pathlib import Path

import pytest

from fgtrain.errors import UserError
from fgtrain.plan import World
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.foreground import detach
from launcher.status import Status, process_token

NUMBERS = itertools.count()
OURS, ANOTHER = os.getpid(), 1


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    return RunStore(open_store(f"memory://detach-{next(NUMBERS)}"), "run")


def played(runs: RunStore, patch: pytest.MonkeyPatch, state: str, pid: int, code: int | None) -> None:
    """Have a supervisor that says how the run stands, and has ended with a code or not, before anybody looks."""

    class Played:
        def __init__(self, *_: object, **__: object) -> None:
            self.pid = OURS
            known = {"host": socket.gethostname(), "pid": pid, "token": process_token(pid) or ""}
            runs.write("status.json", Status(state=state, step=9, steps=9, updated=0.0, nodes=(), **known))

        def poll(self) -> int | None:
            return code

    patch.setattr(subprocess, "Popen", Played)


@pytest.mark.parametrize(("state", "code"), [("running", None), ("finished", 0), ("stopped", 1)])
def test_run_that_goes_on_or_has_ended_well_by_the_first_look_was_started(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, code: int | None
) -> None:
    played(runs, monkeypatch, state, OURS, code)
    assert detach(runs, "local", World(1, 1), None) == 0
    assert capsys.readouterr().out == "run\n"


@pytest.mark.parametrize(("state", "pid"), [("failed", OURS), ("stopped", ANOTHER)])
def test_supervisor_that_fails_at_once_or_says_nothing_is_told_with_its_log(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch, state: str, pid: int
) -> None:
    played(runs, monkeypatch, state, pid, 1)
    with pytest.raises(UserError, match=r"the supervisor of run did not start: see .*supervisor\.log"):
        detach(runs, "local", World(1, 1), None)

"""Loops that take turns; here they are programs of a few lines without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.turns import LoopDied, alternate, running
from tests.testbed.runs import ROOT

# Writes one letter a step, and says in the same file when it leaves.
STEPS = """
import sys, time
from benchmarks.turns import Turn
name, log, address = sys.argv[1:]
turn = Turn(address, name, rank=0)
while not turn.over():
    time.sleep(0.01)
    open(log, "a").write(name)
open(log, "a").write("-" + name)
"""


def stepping(name: str, log: Path) -> Callable[[str], list[str]]:
    return lambda address: [sys.executable, "-c", STEPS, name, str(log), address]


def test_loops_run_one_at_a_time_in_windows_and_then_leave(tmp_path: Path) -> None:
    log = tmp_path / "steps"
    commands = {n: stepping(n, log) for n in "ab"}
    with running(commands, os.environ, ROOT, tmp_path, ranks=1) as loops:
        found = alternate(loops, 2, settle=1, timed=2)
        assert log.read_text() == "aaabbbbbbaaa"
    assert sorted(log.read_text()[12:].split("-")) == ["", "a", "b"]
    for windows in found.values():
        assert len(windows) == 2
        assert all(w.wall_s - w.cpu_s >= 0.019 for w in windows), "two sleeps of 0.01 s"
    assert all(loop.process.returncode == 0 for loop in loops.values())


def test_loop_that_cannot_start_is_reported_with_its_log_and_nothing_is_left(tmp_path: Path) -> None:
    commands = {
        "a": stepping("a", tmp_path / "steps"),
        "b": lambda address: [sys.executable, "-c", "raise SystemExit('no such network')"],
    }
    expected = pytest.raises(LoopDied, match=r"b ended with exit code 1:\nno such network")
    with expected, running(commands, os.environ, ROOT, tmp_path, ranks=1):
        pass


def test_loop_that_dies_in_its_window_is_reported(tmp_path: Path) -> None:
    dying = STEPS.replace("time.sleep(0.01)", "raise MemoryError('of this step')")
    commands = {"a": lambda address: [sys.executable, "-c", dying, "a", str(tmp_path / "steps"), address]}
    with running(commands, os.environ, ROOT, tmp_path, ranks=1) as loops:
        with pytest.raises(LoopDied, match="MemoryError: of this step"):
            alternate(loops, 1, settle=0, timed=1)
        assert loops["a"].process.poll() is not None


def test_waiting_loop_ends_when_the_driver_is_gone(tmp_path: Path) -> None:
    with running({"a": stepping("a", tmp_path / "steps")}, os.environ, ROOT, tmp_path, ranks=1) as loops:
        loops["a"].ranks[0].close()
        assert loops["a"].process.wait(timeout=240) == 1
    assert "EOFError" in (tmp_path / "a.log").read_text()

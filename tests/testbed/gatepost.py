"""The ranks' side of a test's gate (`tests.testbed.gate`). Light: every rank imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgtrain.reduction import Reduction
    from fgtrain.state import State

FILE = "FGLAUNCH_TEST_GATE"
"""In a rank's environment: the file that says which step is the last; none does: all may be taken."""

_LOOK_S = 0.01


def behind_the_gate(reduction: Reduction, state: State) -> Reduction:
    """Have a rank wait at the gate before it begins a step."""
    begin, file = reduction.begin_step, Path(os.environ[FILE])

    def wait_and_begin() -> None:
        told = False
        while state.step >= _limit(file):
            if not told:
                write(file.with_name(f"held.{os.getpid()}"), state.step)
                told = True
            time.sleep(_LOOK_S)
        begin()

    reduction.begin_step = wait_and_begin  # type: ignore[method-assign]
    return reduction


def write(file: Path, step: int) -> None:
    """Write a whole file at once."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(str(step))
    fresh.replace(file)


def _limit(file: Path) -> float:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return float("inf")

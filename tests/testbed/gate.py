"""A gate on the way of a real run: it takes no step beyond the one that the test has named, however long that looks on.

So what a test does to a run meets it at a known step, and never after its end. While it waits there, everything but
steps goes on: snapshots are committed (`LiveRun.wait_committed`), notices are heard, nodes join and leave.
For runs on this machine; those over SSH take the model `gated`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.contracts.cluster import lives
from tests.testbed.gatepost import FILE, write
from tests.testbed.runs import ROOT, LiveRun, wait_for

GATED = str(ROOT / "tests" / "testbed" / "gated")
_LOOKS_A_STEP = 5  # half a second

_PATIENT = ("--supervise", "watchdog.floor_s=900")  # who is held does not hang
BEHIND_GATE = ("--set", 'strategy={"kind": "gated"}', *_PATIENT)
"""What a run with DDP is started with; `env` of its gate must be in its environment."""
BEHIND_GATE_FSDP = ("--set", 'strategy={"kind": "gatedfsdp"}', *_PATIENT)
"""The same with FSDP."""


class Gate:
    """Open at first. It is one for all runs that have its `env`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "gate"
        self.env = {FILE: str(self._file), "PYTHONPATH": os.pathsep.join((GATED, str(ROOT)))}

    def hold(self, step: int) -> None:
        """Let runs take the steps up to this one, and no more."""
        write(self._file, step)

    def wait_reached(self, run: LiveRun, step: int, attempt: int = 1) -> None:
        """Wait until all ranks of an attempt, or of a later one, have taken this step and are held there.

        Events do not say so: of steps that follow each other quickly, few are told of.
        """

        def there() -> bool:
            assert run.process.poll() is None, f"the run ended early:\n{run.output()}"
            begun = [e for e in run.events() if e["event"] == "attempt"][-1:]
            return bool(begun) and begun[0]["attempt"] >= attempt and self._held(step) >= begun[0]["world"]

        wait_for(there, f"{run.name} is held at step {step} in attempt {attempt}")

    def _held(self, step: int) -> int:
        """Return how many living ranks have said that they are held at or past a step."""
        return sum(int(f.read_text()) >= step for f in self._file.parent.glob("held.*") if lives(int(f.suffix[1:])))

    def creep(self, step: int, until: Callable[[], Any], what: str) -> Any:
        """Let runs take one more step now and then, from this one on, until something holds; returns its value."""
        looks = itertools.count()

        def look() -> Any:
            self.hold(step + next(looks) // _LOOKS_A_STEP)
            return until()

        return wait_for(look, what)

    def open(self) -> None:
        """Let runs go on to their ends."""
        self._file.unlink(missing_ok=True)

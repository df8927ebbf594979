"""What an interruption costs torchrun with torch.save: a real run, one of its workers killed now and then.

It is taken at its best. `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` gives each incarnation of the workers a store of its own
to meet in: as torchrun comes, they share one, where the quicker one finds the address of the slower one's predecessor
and waits for it in vain. A worker is killed rather than a node, which torchrun notices at once. Should no step follow
all the same, the whole job is started again after a time-out, as people and job scripts do; that is counted, and what
was waited for is left out of the figure that ours is held against.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.processes import kill, with_words
from fgtrain.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
_START_S = 240.0  # from a job's start to the steps that a kill waits for
_END_S = 10.0
_SAVE_EVERY = 10


class Peer(NamedTuple):
    """What torchrun's run was seen to cost, in seconds.

    Attributes:
        save_s: of a torch.save.
        restart_s: from the last step before a kill to the first one after, without what was waited for in vain.
        waited_s: restart_s with that.
        kills: of a worker.
        jobs: how often the whole job had to be started again for it.
    """

    save_s: float
    restart_s: float
    waited_s: float = 0.0
    kills: int = 0
    jobs: int = 0


class Gap(NamedTuple):
    """An interruption: seconds from step to step, and how many of them were waited in vain (0: it came back)."""

    seconds: float
    in_vain_s: float


class Job:
    """A job under torchrun, that can be started again. FOLDER/log has what it says."""

    def __init__(self, folder: Path, model: str, crop: int, patience_s: float) -> None:
        """Prepare one that waits `patience_s` for steps after a kill before it is started again."""
        self._folder, self._patience_s = folder, patience_s
        self._argv = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--max-restarts=100", "--monitor-interval=0.1", "-m", "benchmarks.loops.torchrun_save"),
            *(str(folder), model, str(crop), "16", str(_SAVE_EVERY)),
        ]
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it goes on from its checkpoint."""
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self._folder / "log").open("ab") as log:
            self._agent = subprocess.Popen(self._argv, env=os.environ | env, stdout=log, stderr=log, cwd=ROOT)

    def end(self) -> None:
        """End it; workers that their agent leaves behind are killed."""
        if self._agent is None:
            return
        self._agent.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._agent.wait(_END_S)
        self._agent.kill()
        self._agent.wait()
        self._agent = None
        kill(with_words(str(self._folder), "benchmarks.loops.torchrun_save"))

    def strike(self) -> Gap:
        """Kill a worker some steps after a save, and see the job come back.

        Raises:
            UserError: it does not, however often it is started.
        """
        begun = len(steps(self._folder))
        if not self._wait(lambda: _is_past_a_save(steps(self._folder)[begun:]), _START_S):
            raise UserError(f"torchrun takes no steps: {self._said()}")
        begun = len(steps(self._folder))
        os.kill(int((self._folder / "pid-1").read_text()), signal.SIGKILL)
        struck, in_vain_s = time.monotonic(), 0.0
        if not self._wait(lambda: bool(gaps(steps(self._folder)[begun - 1 :])), self._patience_s):
            in_vain_s = time.monotonic() - struck
            self.end()
            self.start()
            if not self._wait(lambda: bool(gaps(steps(self._folder)[begun - 1 :])), _START_S):
                raise UserError(f"torchrun does not go on from its checkpoint: {self._said()}")
        return Gap(gaps(steps(self._folder)[begun - 1 :])[0], in_vain_s)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self._agent is None or self._agent.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def _said(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "nothing in its log")


def measure(folder: Path, model: str, crop: int, kills: int, patience_s: float) -> Peer:
    """Run torchrun for real, with `kills` kills of a worker.

    Raises:
        UserError: it did not come through.
    """
    folder.mkdir()
    job = Job(folder, model, crop, patience_s)
    try:
        job.start()
        found = [job.strike() for _ in range(kills)]
    finally:
        job.end()
    saves = [step["save_s"] for step in steps(folder) if step["save_s"]]
    return summary(saves, found)


def summary(saves: list[float], found: list[Gap]) -> Peer:
    """Return the medians of what was measured, in seconds."""
    return Peer(
        save_s=median(saves),
        restart_s=median(gap.seconds - gap.in_vain_s for gap in found),
        waited_s=median(gap.seconds for gap in found),
        kills=len(found),
        jobs=sum(gap.in_vain_s > 0 for gap in found),
    )


def steps(folder: Path) -> list[dict[str, float]]:
    """Return what rank 0 has written of its steps so far."""
    file = folder / "steps.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def gaps(taken: list[dict[str, float]]) -> list[float]:
    """Return the seconds from step to step wherever the run went back in between."""
    return [b["time"] - a["time"] for a, b in pairwise(taken) if b["step"] <= a["step"]]


def _is_past_a_save(taken: list[dict[str, float]]) -> bool:
    saved = [step["save_s"] > 0 for step in taken]
    return True in saved and saved[-3:] == [False] * 3

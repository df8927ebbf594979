"""What stands for the project's programs on a node where only their coming and going matters: no torch, no data.

`write_python(folder)` makes an interpreter that runs these in place of `python -m fgtrain.agent` and others. The first
node's agent takes a step every now and then and commits one every fifth; told to stop, it commits the step it is at.
It goes no further than the number in a file `gate` of the run's working folder, while there is one: see `hold`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 0.1


def write_python(folder: Path) -> Path:
    """Write the interpreter."""
    file = folder / "light-python"
    file.write_text(
        "#!/bin/sh\n"
        f'case "$2" in launcher.job) exec {sys.executable} "$@";; esac\n'
        f'export PYTHONPATH={ROOT}\nexec {sys.executable} -m tests.testbed.light_agent "$@"\n'
    )
    file.chmod(0o755)
    return file


def hold(work: Path, run: str, step: int) -> Path:
    """Have a run go no further than a step; returns the file that says so."""
    (work / run).mkdir(parents=True, exist_ok=True)
    gate = work / run / "gate"
    gate.write_text(str(step))
    return gate


class Agent:
    """A node's agent and its only rank."""

    def __init__(self, url: str, run: str, folder: Path) -> None:
        from fgtrain.runstore import RunFile, RunStore
        from fgtrain.stores import open_store

        self.runs = RunStore(open_store(url), run)
        self.steps = self.runs.read("run.json", RunFile).plan.steps
        self.step = max((int(n.split("-")[0]) for n in self.runs.manifest_names()), default=0)
        self.events, self.stop, self.attempt = folder / "events.jsonl", False, 0
        self.gate = folder.parent / "gate"
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self.stop = True

    def event(self, kind: str, **fields: object) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps({"event": kind, "time": time.time(), "step": self.step, **fields}) + "\n")

    def commit(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.runs.store.put(self.runs.key(f"manifests/{self.step:08d}-{self.attempt:05d}"), b"")
        self.event("snapshot", bytes_new=0)

    def held(self) -> bool:
        """Tell whether it is to stay at this step for now."""
        try:
            return self.step >= int(self.gate.read_text())
        except FileNotFoundError:
            return False
        except ValueError:  # it is just being written
            return True

    def lead(self) -> int:
        """Train."""
        from fgtrain.runstore import Result

        self.attempt = self.runs.take_attempt(self.step, 1).attempt
        self.event("attempt", attempt=self.attempt, steps=self.steps, world=1, tier="")
        while self.step < self.steps and not self.stop:
            time.sleep(STEP_S)
            if self.held():
                continue
            self.step += 1
            self.event("step", epoch=0.0, loss=0.0, lr=0.0, images_per_s=0.0)
            if self.step % 5 == 0:
                self.commit()
        self.commit()
        if self.stop:
            return 75
        result = Result(step=self.step, weights="", last={}, best={}, bad_images=0)
        self.runs.write("result.json", result)
        return 0

    def follow(self) -> int:
        """Wait for the first node's end."""
        while not self.stop and not self.runs.exists("result.json"):
            time.sleep(STEP_S)
        return 75 if self.stop else 0


def main() -> int:
    """Be the program that was asked for."""
    program = sys.argv[2]
    if program == "fgtrain.rendezvous":
        signal.pause()
    if program != "fgtrain.agent":
        return 0
    url, run, folder = sys.argv[-3:]
    agent = Agent(url, run, Path(folder))
    first = re.match(r"(\w+?)\[?(\d+)", os.environ["SLURM_JOB_NODELIST"])  # as node2, node[1-2], node[1,3]
    assert first
    return agent.lead() if os.environ["SLURMD_NODENAME"] == first[1] + first[2] else agent.follow()


if __name__ == "__main__":
    sys.exit(main())

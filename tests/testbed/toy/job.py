"""What a toy run is told. Without torch."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from fgtrain.recipe import Snapshots

RUN = "toy"
MICRO_BATCHES = 4


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is, how far it goes (steps), how large its world is, and how it takes snapshots.

    `pace_s` is how long a step takes at least; `final_s` how long the last snapshot may take; `restarts` how often all
    may begin anew; `env` is added to its environment.
    """

    store: str
    work: str
    nodes: int
    gpus: int
    steps: int = 1_000_000
    pace_s: float = 0.005
    final_s: float = 60.0
    restarts: int = 1_000_000
    env: dict[str, str] = {}
    snapshots: Snapshots = Snapshots(steps=7, memory_steps=2)

    def node(self, number: int) -> Path:
        """Return a node's working folder."""
        return Path(self.work) / f"node{number}"

    @property
    def stop(self) -> Path:
        """A file that asks the run to stop."""
        return Path(self.work) / "stop"

    def pid_file(self, kind: str, number: int = 0) -> Path:
        """Return the file that holds the process ID of an agent (by node) or a worker (by rank)."""
        return Path(self.work) / "pids" / f"{kind}{number}"

    def enter(self, kind: str, number: int) -> None:
        """Leave this process's ID for those who hurt it; at once and whole, for half an ID is somebody else's."""
        file = self.pid_file(kind, number)
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_text(str(os.getpid()))
        fresh.replace(file)

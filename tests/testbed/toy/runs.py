"""Toy runs from the outside: starting them, watching them, hurting them. Without torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]
import pytest

from fgtrain.errors import Corrupt
from fgtrain.runstore import RunStore
from fgtrain.snapshot import staged
from fgtrain.snapshot.memory import memory_folders
from fgtrain.snapshot.staged import Header
from fgtrain.stores import open_store
from tests.testbed.runs import ROOT, wait_for
from tests.testbed.toy.job import RUN, Job


class Nursery:
    """The process that all toy runs are forked from; with its end, all of them end."""

    def __init__(self, memory: Path, **env: str) -> None:
        self.memory = memory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.testbed.toy.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"FGLAUNCH_MEMORY": str(memory), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        )
        self._started: list[int] = []
        self.ended: dict[int, int] = {}
        self._ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *numbers = line.split()
            if word == b"ready":
                self._ready.set()
            elif word == b"started":
                self._started.append(int(numbers[0]))
            else:
                self.ended[int(numbers[0])] = int(numbers[1])

    def start(self, job: Job) -> ToyRun:
        """Start a run's supervisor."""
        assert self._ready.wait(240), "torch is not imported"
        for folder in ("pids", *(f"node{n}" for n in range(job.nodes))):
            (Path(job.work) / folder).mkdir(parents=True, exist_ok=True)
        before = len(self._started)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        wait_for(lambda: len(self._started) > before, "the nursery starts a supervisor", 240)
        return ToyRun(self, job, self._started[-1])

    def close(self) -> None:
        """Kill it, and with it every run that is left."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def nursery(memory: Path, **env: str) -> Iterator[Nursery]:
    """Run a nursery."""
    nursery = Nursery(memory, **env)
    try:
        yield nursery
    finally:
        nursery.close()


class ToyRun:
    """One life of a run: from the start of a supervisor to its end."""

    def __init__(self, nursery: Nursery, job: Job, pid: int) -> None:
        self.job, self.pid = job, pid
        self._nursery = nursery

    # -- what it says ---------------------------------------------------------------------------------------------

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what the ranks 0 have said, in all lives of the run."""
        found = []
        for file in Path(self.job.work).glob("node*/events.jsonl"):
            for line in file.read_text().splitlines(keepends=True):
                with contextlib.suppress(json.JSONDecodeError):  # killed in mid-line
                    found.append(json.loads(line))
        return sorted((e for e in found if kind in (None, e["event"])), key=lambda e: e["time"])

    def wait_event(self, kind: str, count: int = 1, timeout_s: float = 240.0) -> dict[str, Any]:
        """Wait until there are `count` events of a kind; returns the last of them."""
        wait_for(lambda: len(self.events(kind)) >= count or self.failed(), f"{count} x {kind}: {self.log()}", timeout_s)
        assert not self.failed(), self.log()
        return self.events(kind)[count - 1]

    def notes(self) -> str:
        """Return all notes, a line each."""
        return "\n".join(e["text"] for e in self.events("note"))

    def wait_note(self, part: str) -> None:
        """Wait until there is a note with this in it."""
        wait_for(lambda: part in self.notes() or self.failed(), f"a note on {part!r}: {self.notes()} {self.log()}")
        assert part in self.notes(), self.log()

    def wait_steps(self, more: int) -> None:
        """Wait until so many more steps are done."""
        self.wait_event("did", len(self.events("did")) + more)

    def failed(self) -> bool:
        """Tell whether the supervisor ended badly."""
        return self._nursery.ended.get(self.pid, 0) > 0

    def log(self) -> str:
        """Return the end of what its processes printed."""
        file = Path(self.job.work) / "log"
        return file.read_text(errors="replace")[-20_000:] if file.exists() else ""

    # -- its processes --------------------------------------------------------------------------------------------

    def agent(self, node: int) -> int:
        """Return an agent's process ID."""
        return int(self.job.pid_file("agent", node).read_text())

    def worker(self, rank: int) -> int:
        """Return a worker's process ID."""
        return int(self.job.pid_file("worker", rank).read_text())

    def hit(self, pid: int, sig: signal.Signals = signal.SIGKILL, *, group: bool = False) -> None:
        """Signal one process of this run, or its group; one that has ended, and whatever is not this run's, is left.

        IDs are used again, and some stand for everything there is: nothing is signalled but what descends from the
        supervisor, each by its own ID.
        """
        for target in self._mine():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if (os.getpgid(target) if group else target) == pid:
                    psutil.Process(target).send_signal(sig)

    def _mine(self) -> list[int]:
        with contextlib.suppress(psutil.Error):
            supervisor = psutil.Process(self.pid)
            if supervisor.ppid() == self._nursery.pid:
                return [p.pid for p in [supervisor, *supervisor.children(recursive=True)]]
        return []

    def uploader(self, rank: int) -> int | None:
        """Return the process ID of a worker's uploader, if it has one now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.worker(rank)).children():
                if "fgtrain.snapshot.uploader" in child.cmdline():
                    return int(child.pid)
        return None

    def below(self) -> list[int]:
        """Return the living processes of the supervisor's session (zombies aside), so also those whose parent died."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if pid != self.pid and os.getsid(pid) == self.pid and _alive(pid):
                    found.append(pid)
        return found

    @property
    def ended(self) -> bool:
        """Whether the supervisor has ended."""
        return self.pid in self._nursery.ended

    def wait_ended(self, timeout_s: float = 240.0) -> int:
        """Wait until the supervisor has ended; returns its exit code."""
        wait_for(lambda: self.ended, f"the run ends: {self.log()}", timeout_s)
        return self._nursery.ended[self.pid]

    def kill(self) -> None:
        """Kill the supervisor, and wait until all of the run is gone."""
        self.hit(self.pid)
        self.wait_ended()
        wait_for(lambda: not self.below(), "the run's processes are gone", 240)

    # -- what it has kept -----------------------------------------------------------------------------------------

    @property
    def runs(self) -> RunStore:
        """The run's corner of its store."""
        return RunStore(open_store(self.job.store), RUN)

    def memory(self, node: int) -> tuple[Path, ...]:
        """Return where a node's ranks stage."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FGLAUNCH_MEMORY", str(self._nursery.memory))
            for name, value in self.job.env.items():
                patch.setenv(name, value)
            return memory_folders(RUN, self.job.node(node), RUN)

    def committed(self) -> int:
        """Return the step of the newest manifest, all of whose chunks are there; every manifest must be so."""
        names = self.runs.manifest_names()
        for name in names[-3:]:
            for chunk in self.runs.manifest(name).chunks():
                self.runs.get_chunk(chunk)
        return int(names[-1].split("-")[0]) if names else -1

    def in_memory(self, nodes: int) -> int:
        """Return the newest step that these nodes hold whole in memory, -1 for none."""
        shares: dict[tuple[int, int, int], set[int]] = {}
        folders = [f for n in range(nodes) for m in self.memory(n) if m.is_dir() for f in m.glob("*")]
        for folder in folders:
            for _, header in staged.headers(folder):
                if isinstance(header, Header) and _verifies(folder, header):
                    shares.setdefault((header.step, header.attempt, header.world), set()).add(header.rank)
        return max((state[0] for state, ranks in shares.items() if len(ranks) == state[2]), default=-1)


def _verifies(folder: Path, header: Header) -> bool:
    try:
        for file in {s.file for s in header.stretches}:
            staged.verified_bytes(folder, header, file)
    except Corrupt:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def lineage(runs: RunStore) -> list[tuple[int, int]]:
    """Return (step, micro-batch) of every sample-id line of the newest snapshot's lineage."""
    manifest = runs.manifest(runs.manifest_names()[-1])
    return [(r["step"], r["micro"]) for r in map(json.loads, runs.log_lines(manifest, "samples").splitlines())]

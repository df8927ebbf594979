"""Real runs through the real command line, watched and hurt from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgtrain.runstore import RunStore
from fgtrain.stores import open_store

ROOT = Path(__file__).resolve().parents[2]
FGLAUNCH = (sys.executable, "-m", "launcher")


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 240.0) -> Any:
    """Return the condition's first true value; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Runs:
    """A store and work folder of a test's own, and the command line on them."""

    def __init__(self, folder: Path, store: str | None = None, **env: str) -> None:
        self.folder = folder
        self.store = store or f"file://{folder}/store"
        self.work = folder / "work"
        self.env = os.environ | {
            "FGLAUNCH_STORE": self.store,
            "FGLAUNCH_WORK": str(self.work),
            "FGLAUNCH_MEMORY": str(folder / "memory"),
            "PYTHONPATH": str(ROOT),
            **env,
        }

    def call(self, *args: str, timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*FGLAUNCH, *args], capture_output=True, text=True, env=self.env, cwd=ROOT, timeout=timeout_s, check=False
        )

    def json(self, *args: str) -> Any:
        """Run a command with --json and return what it printed."""
        done = self.call(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def samples(self, run: str) -> str:
        """Return the committed lineage's sample-id log."""
        done = self.call("samples", run, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stdout
        return done.stdout

    def processes(self) -> list[int]:
        """Return every living process that was started with this store or work folder, detached ones too."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known = f"FGLAUNCH_WORK={self.work}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if known and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found

    def end(self) -> None:
        """Kill whatever is left, also what was detached."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def start(self, name: str, *args: str) -> Iterator[LiveRun]:
        """Start a run in the foreground; whatever is left of it at the end of the `with` is killed."""
        run = LiveRun(self, name, args)
        try:
            yield run
        finally:
            run.end()


def _environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _leads(pid: int) -> bool:
    """Whether a process leads its group; one that has ended since it was seen does not."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == pid
    return False


class LiveRun:
    """A run that goes on."""

    def __init__(self, runs: Runs, name: str, args: tuple[str, ...]) -> None:
        self.name = name
        self._work, self._store = runs.work / name, runs.store
        self._log = (runs.folder / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [*FGLAUNCH, *args], stdout=self._log, stderr=self._log, env=runs.env, cwd=ROOT, start_new_session=True
        )

    def events(self) -> list[dict[str, Any]]:
        """Return what its ranks 0 have said so far."""
        files = sorted(self._work.glob("node*/events.jsonl"))
        lines = [line for f in files for line in f.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return sorted((json.loads(line) for line in lines), key=lambda e: e["time"])

    def wait_step(self, step: int, attempt: int = 1) -> None:
        """Wait until an attempt has got to a step."""

        def there() -> bool:
            ended = self.process.poll() is not None  # looked at first: what it did until then counts
            seen = self.events()
            begun = [i for i, e in enumerate(seen) if e["event"] == "attempt" and e["attempt"] >= attempt]
            reached = bool(begun) and any(e["event"] == "step" and e["step"] >= step for e in seen[begun[0] :])
            assert reached or not ended, f"the run ended early:\n{self.output()}"
            return reached

        wait_for(there, f"{self.name} reaches step {step} in attempt {attempt}")

    def wait_snapshot(self, step: int) -> None:
        """Wait until a snapshot at or past a step is committed."""

        def there() -> bool:
            ended = self.process.poll() is not None
            committed = any(e["event"] == "snapshot" and e["step"] >= step for e in self.events())
            assert committed or not ended, f"the run ended early:\n{self.output()}"
            return committed

        wait_for(there, f"{self.name} commits step {step}")

    def wait_committed(self, step: int) -> None:
        """The same by the store: ranks hear of a commit, and tell of it, only when they have taken another step."""
        runs = RunStore(open_store(self._store), self.name)
        wait_for(lambda: runs.newest_step() >= step, f"{self.name} commits step {step}")

    def workers(self) -> list[int]:
        """Return the process IDs of its ranks, in order of node."""
        return [
            pid
            for pid, argv in self._started()
            if "fgtrain.worker" in argv and "fgtrain.agent" not in argv and _leads(pid)
        ]

    def agents(self) -> list[int]:
        """Return the process IDs of its agents, in order of node."""
        return [pid for pid, argv in self._started() if "fgtrain.agent" in argv and _leads(pid)]

    def warm(self) -> list[int]:
        """Return the process IDs of the warm processes of its agents, in order of node."""
        return [pid for pid, argv in self._started() if "fgtrain.warmup" in argv]

    def rendezvous(self) -> int:
        """Return the process ID of the store that its agents meet in."""
        return next(pid for pid, argv in self._started() if "fgtrain.rendezvous" in argv)

    def node(self, number: int) -> list[int]:
        """Return every living process of one of its nodes."""
        here = f"{self._work}/node{number}#".encode()
        return [pid for pid, _ in self._started() if here in _environ(pid)]

    def all(self) -> list[int]:
        """Return every living process that the run started."""
        return [pid for pid, _ in self._started()]

    def _started(self) -> list[tuple[int, list[str]]]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{self._work}/".encode() in (folder / "environ").read_bytes():
                        argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                        found.append((int(folder.name), argv))
        return sorted(found, key=lambda p: (p[1][-2:], p[0]))

    def kill_all(self) -> None:
        """Kill the launcher and with it everything, as when the machine goes; returns when nothing is left."""
        self.process.kill()
        self.process.wait(240)

        def gone() -> bool:
            left = self.all()  # what was being started when the others died is found next time
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_for(gone, "every process of the run is gone")

    def wait(self, timeout_s: float = 400.0) -> int:
        """Wait for the launcher to end; returns its exit code."""
        return self.process.wait(timeout_s)

    def output(self) -> str:
        """Return what the launcher has printed."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def end(self) -> None:
        """Kill what is left."""
        for pid in [self.process.pid, *self.all()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(240)
        self._log.close()

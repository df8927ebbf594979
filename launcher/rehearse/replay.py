"""The edge of a rehearsal: a cluster whose nodes come and go as a trace says. Kills only what it started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cluster import Command, Node, Process
from cluster.local import LocalCluster
from fgtrain.runstore import RunFile
from fgtrain.snapshot.memory import forget, memory_folders
from launcher.rehearse.slots import Moves

_AWAITED = "agent"  # whatever else a run starts (rendezvous, checks) does not come and go with a node
_POLL_S = 0.05


class AwaitedProcess:
    """A program on a node that is not there yet: it starts when the node comes, and looks as if it ran till then."""

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._process: Process | None = None
        self._ended: int | None = None
        self._lock = threading.Lock()

    def node_is_here(self) -> None:
        """Start the program, unless it was ended meanwhile or runs."""
        with self._lock:
            if self._process is None and self._ended is None:
                self._process = self._start()

    @property
    def pid(self) -> int:
        """See `Process`; 0 as long as there is none."""
        return self._process.pid if self._process else 0

    def poll(self) -> int | None:
        """See `Process`."""
        return self._process.poll() if self._process else self._ended

    def wait(self, timeout_s: float) -> int | None:
        """See `Process`."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self.poll()

    def terminate(self) -> None:
        """See `Process`."""
        with self._lock:
            if self._process is None and self._ended is None:
                self._ended = -15
        if self._process:
            self._process.terminate()

    def kill(self) -> None:
        """See `Process`."""
        with self._lock:
            if self._process is None and self._ended is None:
                self._ended = -9
        if self._process:
            self._process.kill()


class RehearsalCluster(LocalCluster):
    """This machine as nodes on which agents live only while the rehearsal says that the node is there."""

    def __init__(self, root: Path, project: Path, run: RunFile) -> None:
        """See `LocalCluster`; `run` is the one whose memory goes with a node."""
        super().__init__(root, project)
        self._run = run
        self._lock = threading.RLock()
        self._here: set[str] = set()
        self._running: dict[str, list[AwaitedProcess]] = {}
        self._closed = False

    def start(self, node: Node, command: Command) -> Process:  # type: ignore[override]
        """Start a program; an agent only when its node comes. See `Cluster`."""
        if command.name != _AWAITED:
            return super().start(node, command)
        with self._lock:
            awaited = AwaitedProcess(lambda: super(RehearsalCluster, self).start(node, command))
            self._running.setdefault(node.name, []).append(awaited)
            if node.name in self._here:
                awaited.node_is_here()
            return awaited

    def come(self, node: Node) -> None:
        """A node is there: start what waits for it."""
        with self._lock:
            if self._closed:
                return
            self._here.add(node.name)
            for process in self._running.get(node.name, []):
                process.node_is_here()

    def notice(self, node: Node) -> list[Process]:
        """Ask what runs on a node to leave; returns it. What starts from now on waits for the next node."""
        with self._lock:
            self._here.discard(node.name)
            leaving = self._taken(node)
            for process in leaving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(
                        process.pid, signal.SIGUSR1
                    )  # which an agent takes for a notice; SIGTERM is the supervisor's
            return leaving

    def lose(self, node: Node, leaving: Sequence[Process] | None = None) -> None:
        """Kill what runs on a node, and take away its memory; after a notice, what has not left since.

        By then another node may have taken the place: here it is the same folder, whose memory it has to be left.
        """
        with self._lock:
            replaced = node.name in self._here and leaving is not None
            if leaving is None:
                self._here.discard(node.name)
            for process in self._taken(node) if leaving is None else leaving:
                process.kill()
        if not replaced:
            for folder in memory_folders(self._run.name, Path(node.folder), self._run.identity):
                forget(folder)

    def _taken(self, node: Node) -> list[Process]:
        return [p for p in self._running.get(node.name, []) if p.pid and p.poll() is None]

    def close(self) -> None:
        """Let no more nodes come."""
        with self._lock:
            self._closed = True


class Replay:
    """Plays moves on a cluster's nodes in a thread, from `start` on."""

    def __init__(
        self,
        cluster: RehearsalCluster,
        nodes: Sequence[Node],
        moves: Sequence[Moves],
        end_s: float,
        notice_s: float,
        at_end: Callable[[], None],
    ) -> None:
        """Play `moves` (real seconds after the start); with `notice_s`, a loss is a notice and, so much later, a kill.

        `at_end` is called in the thread when the trace is over, after `end_s`.
        """
        self._cluster, self._nodes, self._moves = cluster, nodes, moves
        self._end_s, self._notice_s, self._at_end = end_s, notice_s, at_end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, name="replay", daemon=True)
        self.begun = 0.0
        self.failed: Exception | None = None

    def start(self) -> None:
        """Begin."""
        self.begun = time.time()
        self._thread.start()

    def stop(self) -> None:
        """End early, or wait for the thread; nothing happens on the cluster afterwards."""
        self._cluster.close()
        self._over.set()
        self._thread.join()

    def _play(self) -> None:
        try:
            if self._through():
                self._at_end()
        except Exception as error:  # the main thread tells the user
            self.failed = error
            self._at_end()
        self._over.wait()  # what a thread started is told to end when the thread does: prctl(2), PR_SET_PDEATHSIG

    def _through(self) -> bool:
        """Play to the end; False if stopped before."""
        started = time.monotonic()
        for at_s, act in [*sorted(self._acts(), key=lambda a: a[0]), (self._end_s, lambda: None)]:
            if self._over.wait(max(0.0, started + at_s - time.monotonic())):
                return False
            act()
        return True

    def _acts(self) -> list[tuple[float, Callable[[], object]]]:
        """Return what is to be done when; at one and the same time in this order."""
        acts: list[tuple[float, Callable[[], object]]] = []
        for move in self._moves:
            for place in move.lost:
                acts += self._losing(move.at_s, self._nodes[place])
            acts += [(move.at_s, partial(self._cluster.come, self._nodes[place])) for place in move.filled]
        return acts

    def _losing(self, at_s: float, node: Node) -> list[tuple[float, Callable[[], object]]]:
        if not self._notice_s:
            return [(at_s, partial(self._cluster.lose, node))]
        leaving: list[Process] = []
        return [
            (at_s, lambda: leaving.extend(self._cluster.notice(node))),
            (at_s + self._notice_s, lambda: self._cluster.lose(node, leaving)),
        ]

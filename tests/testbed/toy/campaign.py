"""A campaign of random kills over one toy run: what dies, when, and with what; and what must hold each time.

After each death, and before anything starts again, the newest whole state is looked up from outside; the run must go on
from that one. No steps may be lost but those since the last in-memory snapshot that every rank had finished, or, where
a node's memory went with it, since the last commit that the run had told of.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from fgtrain.recipe import Snapshots
from tests.testbed.runs import wait_for
from tests.testbed.toy.job import MICRO_BATCHES, Job
from tests.testbed.toy.runs import Nursery, ToyRun, lineage

WORLDS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (4, 1))
KINDS = ("worker", "worker", "agent", "node", "lost node", "uploader", "uploader", "supervisor")
_LONGEST_DELAY_S = 0.6
_TIMEOUT_S = 240.0


class Figures(msgspec.Struct):
    """What a campaign came to; steps lost a death against the bound, worst of all deaths.

    A run that cannot be loaded, a wrong byte or a step too many lost is not counted: it ends the campaign.
    """

    seed: int
    kills: Counter[str] = msgspec.field(default_factory=Counter)
    restarts: int = 0
    from_memory: int = 0
    commits: int = 0
    lost_most: int = 0
    lost_sum: int = 0
    bound_of_most: int = 0

    def line(self) -> str:
        """Return it as a line."""
        kinds = ", ".join(f"{n} {k}" for k, n in sorted(self.kills.items()))
        return (
            f"seed {self.seed}: {self.kills.total()} kills ({kinds}); {self.restarts} restarts, {self.from_memory} from"
            f" memory, each to the byte; {self.commits} commits, all of which verify; steps lost: at most"
            f" {self.lost_most} (bound there {self.bound_of_most}), {self.lost_sum} in all"
        )


class Campaign:
    """Kills one run again and again; everything that is drawn comes from the seed."""

    def __init__(self, nursery: Nursery, folder: Path, seed: int) -> None:
        self._nursery, self._random = nursery, random.Random(seed)
        self.figures = Figures(seed)
        when = Snapshots(steps=7, memory_steps=2)
        self._job = Job(
            store=f"file://{folder}/store", work=str(folder / "work"), nodes=2, gpus=1, snapshots=when, final_s=240.0
        )
        self._run = nursery.start(self._job)

    def go_on(self, kills: int, until: float) -> None:
        """Kill so many more times, or until a time (of `time.monotonic`) if something was started again by then."""
        wanted = self.figures.kills.total() + kills
        while self.figures.kills.total() < wanted and (time.monotonic() < until or not self.figures.restarts):
            self._wait_alive()
            # The instant is the experiment's: anywhere in the life of an attempt.
            time.sleep(self._random.uniform(0, _LONGEST_DELAY_S))
            self._kill(self._random.choice(KINDS))

    def finish(self) -> None:
        """Let the run stop at a step boundary, and look at all it has left."""
        self._wait_alive()
        self._job.stop.touch()
        assert self._run.wait_ended() == 0, self._run.log()
        runs = self._run.runs
        names = runs.manifest_names()
        for name in names:
            for chunk in runs.manifest(name).chunks():
                runs.get_chunk(chunk)
        last = int(names[-1].split("-")[0])
        assert last == self._run.events("did")[-1]["step"]
        assert lineage(runs) == [(s, g) for s in range(last) for g in range(MICRO_BATCHES)]
        self.figures.commits = len(names)

    # -- one kill -------------------------------------------------------------------------------------------------

    def _wait_alive(self) -> None:
        """Wait until the newest attempt has taken a step."""
        attempts = len(self._run.events("attempt"))

        def moving() -> bool:
            assert not self._run.failed(), self._run.log()
            seen = self._run.events()
            begun = [i for i, e in enumerate(seen) if e["event"] == "attempt"]
            return bool(begun) and any(e["event"] == "did" for e in seen[begun[-1] :])

        wait_for(moving, f"attempt {attempts + 1} moves: {self._run.log()}", _TIMEOUT_S)

    def _kill(self, kind: str) -> None:
        ranks = self._job.nodes * self._job.gpus
        rank, node = self._random.randrange(ranks), self._random.randrange(self._job.nodes)
        if kind == "uploader":
            self._kill_uploader(rank)
            return
        self.figures.kills[kind] += 1
        if kind == "supervisor":
            self._run.kill()
            nodes, gpus = self._random.choice(WORLDS)
            job = msgspec.structs.replace(self._job, nodes=nodes, gpus=gpus)
            self._check_death(lambda: self._nursery.start(job), job, lost=nodes < self._job.nodes)
            return
        self._run.hit(self._run.pid, signal.SIGSTOP)  # so that nothing starts before it has been looked at
        match kind:
            case "worker":
                self._run.hit(self._run.worker(rank))
            case "agent":
                self._run.hit(self._run.agent(node))
            case _:
                self._run.hit(self._run.agent(node), group=True)
        wait_for(lambda: not self._run.below(), f"the attempt ends: {self._run.log()}", _TIMEOUT_S)
        if kind == "lost node":
            for folder in self._run.memory(node):
                shutil.rmtree(folder, ignore_errors=True)

        def start() -> ToyRun:
            self._run.hit(self._run.pid, signal.SIGCONT)
            return self._run

        self._check_death(start, self._job, lost=kind == "lost node")

    def _kill_uploader(self, rank: int) -> None:
        """Training must go on in the same attempt."""
        pid = self._run.uploader(rank)
        if pid is None:
            return
        attempt = self._run.events("attempt")[-1]["attempt"]
        self._run.hit(pid)
        self.figures.kills["uploader"] += 1
        done = len(self._run.events("did"))
        self._run.wait_event("did", done + 3)
        assert self._run.events("attempt")[-1]["attempt"] == attempt

    def _check_death(self, start: Any, job: Job, *, lost: bool) -> None:
        """Start the run again and see where it goes on.

        Args:
            start: starts it.
            job: how it goes on.
            lost: whether some of the memory that it had is not there any more.
        """
        events = self._run.events()
        attempts = sum(e["event"] == "attempt" for e in events)
        committed = self._run.committed()
        best = max(committed, self._run.in_memory(job.nodes), 0)
        did = max((e["step"] for e in events if e["event"] == "did"), default=0)
        floor = _floor(events, lost=lost)
        self._job, self._run = job, start()
        begun = self._run.wait_event("attempt", attempts + 1)
        assert not self._run.events("wrong"), self._run.events("wrong")
        assert begun["step"] == best, f"went on from {begun['step']}, and {best} was there"
        assert begun["step"] >= floor, f"went on from {begun['step']}, and {floor} was safe"
        self._count(begun, did, floor)

    def _count(self, begun: dict[str, Any], did: int, floor: int) -> None:
        figures = self.figures
        figures.restarts += 1
        figures.from_memory += begun["tier"] == "memory"
        lost = max(0, did - begun["step"])
        figures.lost_sum += lost
        if lost > figures.lost_most:
            figures.lost_most, figures.bound_of_most = lost, did - floor


def _floor(events: list[dict[str, Any]], *, lost: bool) -> int:
    """Return the step that a run must go on from at least, by what it has said of itself.

    An in-memory snapshot is whole on every rank once all of them have begun the next, and all have once a step after
    that one is done. One that the newest attempt has gone on from is as good, as long as its memory is there.
    """
    committed = max((e["step"] for e in events if e["event"] == "snapshot"), default=0)
    if lost:
        return committed
    begun = max(i for i, e in enumerate(events) if e["event"] == "attempt")
    now = events[begun:]
    kept = [e["step"] for e in now if e["event"] == "kept"]
    did = max((e["step"] for e in now if e["event"] == "did"), default=0)
    whole = [a for a, b in zip(kept, kept[1:], strict=False) if b < did]
    return max(committed, events[begun]["step"], *whole) if whole else max(committed, events[begun]["step"])

"""A queue that is only played, with one job in it, and what tests of such jobs ask for again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster import ClusterError, JobState, Request
from fgtrain.plan import World
from fgtrain.runstore import RunStore
from launcher.exclusions import Exclusion
from launcher.queued import Job
from launcher.status import read_status

RUNNING = JobState(waits=False, text="RUNNING", starts=0, leaving=False)
PENDING = JobState(waits=True, text="PENDING (Resources)", starts=0, leaving=False)
BACK = JobState(waits=True, text="COMPLETING", starts=1, leaving=True)


class FakeQueue:
    """One job, as it is told; `answers` is what `again` returns."""

    lead_s = 60.0
    own = "17"

    def __init__(self, state: JobState | None = RUNNING, answer: str | ClusterError = "17") -> None:
        self.state, self.answer = state, answer
        self.asked: list[str] = []
        self.moved: list[str] = []
        self.cancelled: list[str] = []
        self.requests: list[Request] = []

    def script(self, request: Request) -> str:
        return "#!/bin/sh\n"

    def submit(self, request: Request) -> str:
        self.requests.append(request)
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer

    def look(self, job: str) -> JobState | None:
        return self.state

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def log(self, run: str, job: str) -> Path:
        return Path("/log")

    def again(self, job: str, avoid: Sequence[str]) -> str:
        self.asked.append(job)
        return self.submit(Request("", 0, 0, (), tuple(avoid)))

    def move(self, job: str, avoid: Sequence[str]) -> str:
        self.moved.append(job)
        return self.submit(Request("", 0, 0, (), tuple(avoid)))


def job(**changes: object) -> Job:
    base = Job(kind="slurm", cluster="lab", settings={}, world=World(2, 1), port=None, id="17")
    return msgspec.structs.replace(base, **changes)


def said(runs: RunStore) -> tuple[str, str]:
    status = read_status(runs)
    assert status is not None
    return status.state, status.message


def exclude(runs: RunStore, node: str, cluster: str = "lab") -> None:
    found = Exclusion(cluster=cluster, node=node, reason="ECC", time=0.0, run="run")
    runs.write(f"excluded/{node}.json", found)

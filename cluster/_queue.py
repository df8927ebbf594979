"""Jobs that wait for their nodes: what a backend may offer beside a `Cluster`, as `cluster` has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class Request(NamedTuple):
    """A job to queue: `nodes` machines with `gpus` GPUs each, of which the first runs `python *args` in the project.

    `run` names it; its output goes to the run's working folder. It is to have none of the nodes named in `avoid`.
    """

    run: str
    nodes: int
    gpus: int
    args: tuple[str, ...]
    avoid: tuple[str, ...] = ()


class JobState(NamedTuple):
    """How a queued job fares, `text` in the queue's own words.

    Attributes:
        waits: it has not begun, or not begun again.
        text: its state, and why.
        starts: how often it was begun anew.
        leaving: the queue takes its nodes for others, and it may go on later.
        called_off: somebody has ended it, and its end has begun.
    """

    waits: bool
    text: str
    starts: int
    leaving: bool
    called_off: bool = False


@runtime_checkable
class Queue(Protocol):
    """What a backend may offer beside a `Cluster`: jobs that wait for their nodes and are gone on with by themselves.

    A job's program is sent SIGUSR1 before its time is over; then it may ask to be gone on with `again`.
    """

    lead_s: float
    """How long before the end that signal comes."""
    own: str
    """The job that this process runs in, "" if it is outside of any."""

    def script(self, request: Request) -> str:
        """Return what `submit` hands to the queue, for the user to read."""

    def submit(self, request: Request) -> str:
        """Queue a job and return its number.

        Raises:
            ClusterError: the queue does not take it.
        """

    def look(self, job: str) -> JobState | None:
        """Return how a job fares, None if it is over.

        Raises:
            ClusterError: the queue does not answer.
        """

    def cancel(self, job: str) -> None:
        """End a job; no error if it is over.

        Raises:
            ClusterError: the queue does not answer, or refuses.
        """

    def log(self, run: str, job: str) -> Path:
        """Return the file that a job's output is appended to."""

    def again(self, job: str, avoid: Sequence[str]) -> str:
        """Have this process's own job gone on with, as the settings say of the end of its time.

        Returns the number that it will have, "" for none. It will have none of the nodes to avoid.

        Raises:
            ClusterError: the queue refuses.
        """

    def move(self, job: str, avoid: Sequence[str]) -> str:
        """Have this process's own job gone on with on other nodes, since it has some that are to be avoided.

        As `again`, but also where nothing is to follow at the end of its time.
        """

"""Where the time goes between the end of one round of workers and the first step of the next. Light."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

from fgtrain.membership import Meeting

T = TypeVar("T")

ROUND = "FGLAUNCH_ROUND"
NODES = "FGLAUNCH_NODES"
"""The names of a round's nodes, by rank, separated by commas."""
_TIMES = "FGLAUNCH_TIMES"


def tell_workers(meeting: Meeting, *, noticed: float, stopped: float, met: float) -> None:
    """Pass on to the workers of a round, by the environment, what the agent knows. Times in Unix seconds.

    Args:
        meeting: of the round.
        noticed: when the agent noticed the end of the round before (at first: when it started).
        stopped: when the workers of the round before had left.
        met: when the new round was complete.
    """
    os.environ[ROUND] = str(meeting.round)
    os.environ[NODES] = ",".join(m.node for m in meeting.members)
    times = {"why": meeting.why, "detect": meeting.silent_s, "noticed": noticed, "stopped": stopped, "met": met}
    os.environ[_TIMES] = json.dumps(times)


class Phases:
    """A stopwatch: seconds by phase, from the loss of the last round to the first step of this one.

    detect   how long somebody was silent before it counted as lost (0 if its end was seen)
    stop     until this node's workers had left
    meet     until the agents had met
    start    until the worker ran
    import   until its libraries were there
    """

    def __init__(self, begun: float | None = None, env: Mapping[str, str] = os.environ) -> None:
        """Start; `begun` is when this process did (Unix seconds), now if not given."""
        now = time.time()
        begun = now if begun is None else begun
        self.why = ""
        self.seconds: dict[str, float] = {}
        if known := env.get(_TIMES):
            told = json.loads(known)
            self.why = told["why"]
            self.seconds = {
                "detect": told["detect"],
                "stop": told["stopped"] - told["noticed"],
                "meet": told["met"] - told["stopped"],
                "start": begun - told["met"],
            }
        self._last = begun
        self.done = False

    def end(self, phase: str) -> None:
        """A phase ends, the next begins."""
        now = time.time()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def first(self, phase: str, items: Iterator[T]) -> Iterator[T]:
        """Pass items on; `phase` ends when the first is there."""
        for item in items:
            if phase not in self.seconds:
                self.end(phase)
            yield item

    def rounded(self) -> dict[str, float]:
        """Return the seconds to the millisecond, and their sum as `total`."""
        return {k: round(v, 3) for k, v in self.seconds.items()} | {"total": round(sum(self.seconds.values()), 3)}

"""From signs that something went wrong to one decision an incident. Pure: times come from the caller.

One cause shows in many places: the rank that failed says why, its peers say that it is gone, agents log exit statuses.
Signs that come within a moment of the first, and later ones of the same attempt, are one incident. Where all signs are
of ranks that only lost or follow others, more time is given to whoever knows what became of those.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from typing import NamedTuple

from fgtrain.ladder import NOT_ENOUGH
from fgtrain.plan import Engine
from launcher.budgets import Ledger, Try
from launcher.failures import KINDS, Kind, Poison, Sign, agents_word, cause, tells_of_a_join, worker_exit
from launcher.supervision import Supervision

SETTLE_S = 1.5  # longer than the period in which the store is looked at
PEERS_S = 5.0  # longer than it takes to find that a node is silent, as --detect comes
_SAME_S = 20.0  # all agents find out that a node is gone; one that leaves ends when its last lines are shipped
_ANYONES: tuple[Kind, ...] = ("user", "oom", "capacity", "hang", "error", "lost")
_ADVICE: dict[Kind, str] = {
    "oom": "; a smaller batch.micro needs less memory, and trains the same",
    "capacity": "; make room, or add nodes",
}


class Verdict(NamedTuple):
    """Why a run is given up."""

    exit_code: int
    message: str
    traceback: str


class Decision(NamedTuple):
    """What an incident comes to: its cause, all its signs, how to try again, or why not.

    `blamed`: nodes that are not counted on, and took part or brought it about: to be done without. The run itself has
    done nothing wrong then, as far as can be told.
    """

    cause: Sign
    signs: tuple[Sign, ...]
    retry: Try
    verdict: Verdict | None
    blamed: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """The incident in a line."""
        delay = f", in {self.retry.delay_s:.1f} s" if self.retry.delay_s else ""
        return f"{self.cause.kind}: {self.cause.message}; try {self.retry.number} of {self.retry.of}{delay}"


class Incidents:
    """What went wrong so far in one run."""

    def __init__(self, settings: Supervision, run: str, engine: Engine = "torchrun") -> None:
        self._ranks = engine == "torchrun"
        self._ledger = Ledger(settings, run)
        self._poison = Poison()
        self._begins: dict[int, int] = {}
        self._newest = self._judged = 0
        self._spoken: set[str] = set()  # nodes whose agent has told of an exit since the newest attempt began
        self._gone: dict[str, float] = {}  # nodes that agents have told to be gone, with when they first did
        self._open: list[Sign] = []
        self._opened_at = 0.0
        self._opened_in = 0

    @property
    def newest(self) -> int:
        """The newest attempt; 0: none has begun."""
        return self._newest

    @property
    def open_nodes(self) -> set[str]:
        """The nodes that the incident that is not decided yet has to do with."""
        return {s.node for s in self._open}

    def attempt(self, attempt: int, step: int) -> None:
        """An attempt began at a step."""
        self._begins[attempt] = step
        self._ledger.progress(step)
        if attempt > self._newest:
            self._newest = attempt
            self._spoken.clear()

    def committed(self, step: int) -> None:
        """A step was committed."""
        self._ledger.progress(step)

    def log_line(self, now: float, node: str, time: float, line: str) -> None:
        """Take in a line of an agent's log: its first word on an exit is about the newest attempt.

        Another one before the next attempt is of workers that have not got that far.
        """
        if sign := worker_exit(node, time, line, ranks=self._ranks):
            self.add(now, sign._replace(attempt=0 if node in self._spoken else self._newest))
            self._spoken.add(node)
        elif sign := agents_word(node, time, line):
            self.gone(now, sign, again=False)
        elif tells_of_a_join(line):
            self._open = [s for s in self._open if not s.asked]

    def gone(self, now: float, sign: Sign, *, again: bool) -> None:
        """A node is gone, or its agent. Unless it may be so `again`, this is no news soon after somebody told it."""
        known = now - self._gone.get(sign.node, now - _SAME_S) < _SAME_S
        self._gone[sign.node] = now
        if again or not known:
            self.add(now, sign)

    def add(self, now: float, sign: Sign) -> None:
        """Take in a sign; one of an attempt that is judged already tells nothing new."""
        if 0 < sign.attempt <= self._judged:
            return
        if not self._open:
            self._opened_at, self._opened_in = now, self._newest
        self._open.append(sign)
        if len(self._open) == 1:
            self._opened_in = max(self._opened_in, sign.attempt)

    def decide(self, now: float, apart: Container[str] = (), tried: Collection[str] = ()) -> Decision | None:
        """Return what to do about the incident, if there is one and all who have a word on it have had time.

        Args:
            now: the time.
            apart: nodes that are not counted on (yet, or any more): what they cause is no try of the run.
            tried: those that take part for the first time, and have not taken a step: what goes wrong anywhere is put
                down to them, for a link or a library that fails shows on others, too. If it was not theirs, it comes
                again without them.
        """
        mistake = any(s.kind == "user" for s in self._open)
        settled_s = PEERS_S if all(s.peer for s in self._open) else SETTLE_S
        if not self._open or (now - self._opened_at < settled_s and not mistake):
            return None
        signs = tuple(s for s in self._open if mistake or s.attempt <= self._opened_in)
        self._open = [s for s in self._open if s not in signs]
        self._judged = max(self._judged, self._opened_in)
        self._opened_at, self._opened_in = now, max(self._newest, *(s.attempt for s in self._open), 0)
        first = cause(signs)
        blamed = (first.node,) if first.node in apart else tuple(sorted(tried)) if first.kind in _ANYONES else ()
        if blamed:
            return Decision(first, signs, Try(allowed=True, delay_s=0.0, number=0, of=0), None, blamed)
        repeated = self._poison.repeated(signs, self._begins)
        retry = self._ledger.spend(first.kind)
        return Decision(first, signs, retry, self._verdict(first, repeated, retry))

    def _verdict(self, first: Sign, repeated: Sign | None, retry: Try) -> Verdict | None:
        if first.kind == "user":
            return Verdict(2, first.message, "")
        if repeated and KINDS.index(first.kind) >= KINDS.index("error"):
            return Verdict(1, f"failed twice at the same place: {repeated.message}", repeated.traceback)
        if retry.allowed:
            return None
        why = f"{first.kind}, {retry.number} times without progress past step {self._ledger.best}"
        advice = "" if NOT_ENOUGH in first.message else _ADVICE.get(first.kind, "")
        return Verdict(1, f"given up ({why}): {first.message}{advice}", first.traceback)

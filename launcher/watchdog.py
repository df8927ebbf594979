"""Who hangs and who is slow, from the pulses of all ranks. Pure: times come from the caller.

Only the caller's clock counts: a rank moves when its slot is seen to change, whatever its own clock says.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from fgtrain.pulse import TICK_S, Beat, Phase, Stage
from launcher.supervision import Hang, Straggler

_MEMORY = 64  # steps that the usual step time is taken from
_LEARNED = 3  # steps after which it is one
_FROZEN_S = 5 * TICK_S
_AGAIN_S = 600.0  # a slow rank is not spoken of more often than this


class RankAt(NamedTuple):
    """A rank: its node, its slot there (the local rank), and its rank in the world."""

    node: str
    slot: int
    rank: int


class Hung(NamedTuple):
    """Ranks that stopped moving, for how long, and in words."""

    ranks: tuple[RankAt, ...]
    for_s: float
    text: str


class _Seen(NamedTuple):
    beat: Beat
    moved_at: float
    ticked_at: float


class Watchdog:
    """Watches one run."""

    def __init__(self, hang: Hang, straggler: Straggler) -> None:
        self._hang, self._stragglers = hang, _Stragglers(straggler)
        self._seen: dict[RankAt, _Seen] = {}
        self._now = 0.0
        self._looked_at: float | None = None  # when observed before
        self._attempt = 0
        self._times: deque[float] = deque(maxlen=_MEMORY)
        self._step: int | None = None  # the furthest of this attempt
        self._step_at = 0.0
        self._stepped = 0  # steps of this attempt that were seen to begin

    def observe(self, now: float, beats: Mapping[str, Sequence[Beat]]) -> list[str]:
        """Take in what each node's pulse says; returns what is worth telling.

        Args:
            now: seconds of a clock that never goes back.
            beats: every node's, by its name; none where they cannot be read just now.
        """
        self._looked_at, self._now = (self._now or None), now
        for node, slots in beats.items():
            for beat in slots:
                self._look(now, RankAt(node, beat.slot, beat.rank), beat)
        self._forget_others(beats)
        self._learn(now)
        if not self._steps_only():
            return []
        return self._stragglers.report(now, self._stepped, {at: s.beat.work_s for at, s in self._seen.items()})

    def _look(self, now: float, at: RankAt, beat: Beat) -> None:
        for other in [o for o in self._seen if (o.node, o.slot) == (at.node, at.slot) and o != at]:
            del self._seen[other]
        old = self._seen.get(at)
        moved = old is None or _mark(old.beat) != _mark(beat)
        ticked = moved or old is None or old.beat.ticks != beat.ticks
        self._seen[at] = _Seen(
            beat, now if moved or old is None else old.moved_at, now if ticked or old is None else old.ticked_at
        )

    def _forget_others(self, nodes: Container[str]) -> None:
        """Forget other nodes, and ranks of earlier attempts: what a dead rank wrote last stays in its slot."""
        newest = max((s.beat.attempt for s in self._seen.values()), default=0)
        if newest != self._attempt:
            self._attempt, self._step, self._stepped = newest, None, 0
            self._stragglers.forget()
        self._seen = {at: s for at, s in self._seen.items() if at.node in nodes and s.beat.attempt in (0, newest)}

    def _learn(self, now: float) -> None:
        """Note how long steps take, where nothing but steps lay between."""
        beats = [s.beat for s in self._seen.values() if s.beat.phase is Phase.STEP and s.beat.attempt]
        if not beats or not self._steps_only():
            self._step = None
            return
        furthest = max(b.step for b in beats)
        if self._step is None and not self._stepped and self._looked_at is not None:
            self._step, self._step_at = min(b.first for b in beats), self._looked_at  # it began after that
        if self._step is not None and furthest > self._step:
            taken = furthest - self._step
            self._stepped += taken
            for _ in range(min(taken, self._stepped - self._hang.first_steps, _MEMORY)):  # none of the first ones
                self._times.append((now - self._step_at) / taken)
        if self._step is None or furthest > self._step:
            self._step, self._step_at = furthest, now

    def _steps_only(self) -> bool:
        """Tell whether every rank takes steps of one attempt: who is about something else may be waited for."""
        living = [s for s in self._seen.values() if s.beat.attempt or self._now - s.ticked_at < _FROZEN_S]
        return bool(living) and all(s.beat.phase is Phase.STEP and s.beat.attempt for s in living)

    def limit_s(self) -> float:
        """Return after how long without a move the run hangs, as things are now; 0: never."""
        learned = len(self._times) >= _LEARNED and self._stepped >= self._hang.first_steps
        if not self._steps_only() or not learned:
            return self._hang.quiet_s
        usual = max(median(self._times) * self._hang.factor, 2 * max(self._times))
        return max(self._hang.floor_s, usual)

    def still_s(self, now: float) -> float:
        """Return for how long no rank that can be seen has moved; for ever, if none can be seen."""
        return min((now - s.moved_at for s in self._seen.values()), default=math.inf)

    def hung(self, now: float) -> Hung | None:
        """Return who hangs, None if the run moves or may be silent for longer."""
        limit, silent = self.limit_s(), self.still_s(now)
        if not self._seen or limit <= 0 or silent < limit:
            return None
        ranks = self._culprits(now)
        return Hung(ranks, silent, self._spell(ranks, silent, limit))

    def acted(self, now: float) -> None:
        """Something was done about it: whoever is there has its time anew."""
        self._seen = {at: s._replace(moved_at=now, ticked_at=now) for at, s in self._seen.items()}
        self._step = None

    def _culprits(self, now: float) -> tuple[RankAt, ...]:
        """Name those who keep the others: the frozen, else the furthest behind, else nobody in particular: all."""
        frozen = [at for at, s in self._seen.items() if now - s.ticked_at >= _FROZEN_S]
        if frozen and len(frozen) < len(self._seen):
            return tuple(sorted(frozen))
        behind = min(_place(s.beat) for s in self._seen.values())
        return tuple(sorted(at for at, s in self._seen.items() if _place(s.beat) == behind))

    def _spell(self, ranks: tuple[RankAt, ...], silent: float, limit: float) -> str:
        beat = self._seen[ranks[0]].beat
        where = f"step {beat.step}, {beat.stage.name.lower()}" if beat.phase is Phase.STEP else beat.phase.name.lower()
        names = ", ".join(f"{at.rank} on {at.node}" for at in ranks[:4]) + (", ..." if len(ranks) > 4 else "")
        who = f"rank {names} hangs" if len(ranks) == 1 else f"ranks {names} hang"
        return f"{who} ({where}): no rank moved for {silent:.0f} s, the limit is {limit:.0f} s"


class _Stragglers:
    """Who works longer than the others before they meet, and does so for long."""

    def __init__(self, settings: Straggler) -> None:
        self._settings = settings
        self._slow_since: dict[RankAt, tuple[float, int]] = {}
        self._told_at: dict[RankAt, float] = {}

    def forget(self) -> None:
        """Ranks are others now."""
        self._slow_since.clear()

    def report(self, now: float, step: int, work: Mapping[RankAt, float]) -> list[str]:
        notes = []
        for at, own in work.items():
            others = [w for o, w in work.items() if o != at]
            usual = median(others) if others else 0.0
            if usual <= 0 or own < self._settings.factor * usual:
                self._slow_since.pop(at, None)
                continue
            since, first = self._slow_since.setdefault(at, (now, step))
            long = now - since >= self._settings.for_s and step - first >= self._settings.for_steps
            if long and now - self._told_at.get(at, -_AGAIN_S) >= _AGAIN_S:
                self._told_at[at] = now
                notes.append(
                    f"rank {at.rank} on {at.node} is slow: {own * 1e3:.0f} ms of work before each exchange,"
                    f" the others' median is {usual * 1e3:.0f} ms"
                )
        return notes


def _mark(beat: Beat) -> tuple[int, int, Phase, int, int, Stage]:
    return beat.pid, beat.attempt, beat.phase, beat.step, beat.passes, beat.stage


def _place(beat: Beat) -> tuple[int, int, int]:
    """Return how far a rank is: an exchange, and what follows, is as far as anybody gets without the others.

    Where every pass involves all ranks (FSDP, ZeRO), so is computing: the exchange is in it. And a rank with fewer
    micro-batches is in its last one, or in a pass that counts for nothing, while others have more to come: there, the
    number of the pass counts.
    """
    if beat.phase is not Phase.STEP:
        return (-1, 0, 0)
    return beat.step, beat.passes, min(beat.stage, Stage.COMPUTE if beat.passes else Stage.EXCHANGE)

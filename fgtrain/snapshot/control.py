"""Deciding on snapshots during a run: when, into which tier, and what to make of commits and failures."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fgtrain.errors import Corrupt, StoreError, UserError
from fgtrain.journal import Journal
from fgtrain.place import Place
from fgtrain.recipe import Snapshots
from fgtrain.runstore import Attempt, RunStore
from fgtrain.snapshot import interval
from fgtrain.snapshot.protocol import Committed, Failed
from fgtrain.snapshot.save import FINAL_TIMEOUT_S, Saver
from fgtrain.snapshot.upload import Fenced
from fgtrain.state import State
from fgtrain.step import Wishes

_FIRST_S = 10.0  # before anything is measured
_SMOOTH = 0.3  # weight of the newest measurement


class Clock:
    """Says when a snapshot is due in the store; the time, and so the word, is rank 0's."""

    def __init__(self, when: Snapshots, mtbf_s: float) -> None:
        self._when = when
        self.mtbf_s = mtbf_s
        self._since = time.monotonic()
        self.costs = interval.Costs(stall=0.0, latency=0.0, drag=0.05, slots=1)
        self.period_s: float | None = when.seconds
        if when.seconds is None and when.steps is None and when.auto:
            self.period_s = _FIRST_S

    def due(self, step: int) -> bool:
        """Tell whether to save the state after `step` steps."""
        if self._when.steps is not None and step % self._when.steps == 0:
            return True
        return self.period_s is not None and time.monotonic() - self._since >= self.period_s

    def begun(self) -> None:
        """Start counting anew."""
        self._since = time.monotonic()

    def measured(self, stall_s: float, latency_s: float) -> str | None:
        """Take in what a snapshot cost; returns the new interval with its reasons if that changes it."""
        if self._when.seconds is not None or self._when.steps is not None or not self._when.auto:
            return None
        old = self.costs
        first = old.latency == 0.0
        mix = 1.0 if first else _SMOOTH
        self.costs = old._replace(
            stall=old.stall + mix * (stall_s - old.stall), latency=old.latency + mix * (latency_s - old.latency)
        )
        period = interval.interval_s(self.costs, self.mtbf_s)
        if self.period_s is not None and abs(period - self.period_s) < 0.1 * self.period_s:
            return None
        self.period_s = period
        return (
            f"a snapshot every {period:.1f} s: stall {self.costs.stall * 1e3:.0f} ms, commit after"
            f" {self.costs.latency:.2f} s, mean time between failures taken as {self.mtbf_s / 3600:.1f} h"
        )


class Control:
    """The snapshots of one attempt, as the training loop sees them."""

    def __init__(
        self,
        when: Snapshots,
        saver: Saver,
        runs: RunStore,
        place: Place,
        journal: Journal,
        buffers: set[str],
        final_timeout_s: float = FINAL_TIMEOUT_S,
    ) -> None:
        self._when, self._saver, self._place, self._journal = when, saver, place, journal
        self._buffers = buffers
        self._clock = Clock(when, _hazard(runs) if place.leads else interval.PRIOR_MTBF_S)
        self._last_kept = 0
        self._early = False  # asked for a snapshot that was not begun yet
        self._stall_s = 0.0
        self._commit_s = 0.0
        self._step_s = 0.0
        self._stepped_at: float | None = None
        self._skipped = self._failed = 0
        self._failed_in_a_row: list[str] = []  # why
        self._final_s = final_timeout_s

    def wishes(self, next_step: int, *, stop: bool, save: bool = False) -> Wishes:
        """Return what this rank wants after the step that comes.

        Args:
            next_step: that step's number.
            stop: this rank has been asked to stop.
            save: this rank has been asked for a snapshot ahead of time; it gets one as soon as there is room.
        """
        leads = self._place.leads
        self._early |= save
        return Wishes(
            stop=stop,
            save=(leads and self._clock.due(next_step)) or (self._early and not self._saver.full),
            keep=leads and self._keep_due(next_step),
            full=self._saver.full,
        )

    def _keep_due(self, step: int) -> bool:
        """Tell whether to stage the state after `step` steps in host memory, whatever the store gets."""
        every = self._when.memory_steps
        if every is None:
            every = interval.memory_steps(self._saver.copy_s, self._step_s, self._clock.mtbf_s)
        return every > 0 and step - self._last_kept >= every

    def drain(self) -> None:
        """Called when the state is about to change: wait for what is left of a copy."""
        started = time.perf_counter()
        self._saver.drain()
        self._stall_s += time.perf_counter() - started

    def after_step(self, state: State, wishes: Wishes) -> None:
        """Begin whatever snapshot is due after a step, and hear what became of earlier ones.

        Raises:
            Fenced: another attempt took over.
            UserError: more snapshots in a row failed than the recipe allows.
        """
        self._hear(self._saver.poll())
        self._time_step()
        if not wishes.save and not wishes.keep:
            return
        if wishes.full:
            if wishes.save:
                self._clock.begun()
                self._skipped += 1
                text = f"step {state.step}: no room for a snapshot, skipped ({self._skipped} so far)"
                self._journal.event("note", text=text)
            return
        self._begin(state, persist=wishes.save)

    def _time_step(self) -> None:
        now = time.perf_counter()
        if self._stepped_at is not None:
            took = now - self._stepped_at
            self._step_s = took if not self._step_s else self._step_s + _SMOOTH * (took - self._step_s)
        self._stepped_at = now

    def _begin(self, state: State, *, persist: bool) -> None:
        started = time.perf_counter()
        lines = self._journal.uncommitted()
        self._saver.begin(state.step, state.tensors(), self._buffers, state.values(), lines, persist=persist)
        self._stall_s = time.perf_counter() - started
        self._last_kept = state.step
        if persist:
            self._clock.begun()
            self._early = False

    def _hear(self, reports: Sequence[Committed | Failed]) -> None:
        for report in reports:
            if isinstance(report, Committed):
                self._hear_commit(report)
            else:
                self._hear_failure(report)
        limit = self._when.fail_after
        if limit is not None and len(self._failed_in_a_row) >= limit:
            raise UserError(
                f"{len(self._failed_in_a_row)} snapshots in a row failed (snapshots.fail_after={limit}), the last:"
                f" {self._failed_in_a_row[-1]}"
            )

    def _hear_commit(self, done: Committed) -> None:
        self._failed_in_a_row.clear()
        self._journal.committed(done.step)
        if not self._place.leads:
            return
        self._commit_s = done.seconds
        self._journal.event(
            "snapshot",
            step=done.step,
            bytes_new=done.bytes_new,
            bytes_shared=done.bytes_shared,
            seconds=done.seconds,
            stall_ms=round(self._stall_s * 1e3, 2),
            copy_ms=round(self._saver.copy_s * 1e3, 2),
        )
        if reasons := self._clock.measured(self._stall_s, done.seconds):
            self._journal.event("note", text=reasons)

    def _hear_failure(self, failure: Failed) -> None:
        self._failed += 1
        self._failed_in_a_row.append(failure.reason)
        text = f"snapshot of step {failure.step} failed ({self._failed} so far): {failure.reason}"
        self._journal.event("note", text=text)
        if failure.fenced:
            raise Fenced(failure.reason)

    def last(self, state: State, *, required: bool) -> None:
        """Take a snapshot and wait until it is committed.

        Raises:
            StoreError: it failed, and is `required`.
        """
        if not required and self._commit_s:
            text = (
                f"step {state.step}: the last snapshot before leaving; the one before took {self._commit_s:.1f} s to"
                " commit. A node that goes sooner leaves what is in other nodes' memory, else the last commit"
            )
            self._journal.event("note", text=text)
        try:
            self._saver.make_room(self._final_s)
            self._begin(state, persist=True)
            self.drain()
            self._saver.settle(state.step, self._final_s)
        except StoreError as error:
            self._journal.event("note", text=str(error))
            if required:
                raise
            return
        self._hear(self._saver.poll())


def _hazard(runs: RunStore) -> float:
    """Return the run's mean time between failures so far, in seconds."""
    try:
        attempts = runs.read_all("attempts", Attempt)
    except Corrupt:  # it is only a guess
        return interval.PRIOR_MTBF_S
    running = max(0.0, time.time() - attempts[0].started) if attempts else 0.0
    return interval.mtbf_s(running, interval.failures([a.world for a in attempts]))

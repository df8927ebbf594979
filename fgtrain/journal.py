"""What a run says of itself while it goes: events for displays, TensorBoard, and the lines that snapshots commit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fgtrain.phases import Phases
from fgtrain.place import Place
from fgtrain.snapshot.staged import Lines
from fgtrain.step import StepReport
from fgtrain.tensorboard import ScalarWriter

_EVENT_PERIOD_S = 0.2  # displays need no more than five step events a second


class Journal:
    """Rank 0 writes `events.jsonl` and TensorBoard files in its node's folder; every rank keeps lines to commit."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._place = place
        self._events = (folder / "events.jsonl").open("a", encoding="utf-8") if place.leads else None
        self._board = ScalarWriter(folder / "tensorboard") if place.leads else None
        self._lines: Lines = {}
        self._last_event = 0.0
        self._last_step = time.perf_counter()
        self._images_per_s = 0.0
        self._pending: list[tuple[int, float, float, StepReport]] = []

    def event(self, kind: str, **fields: Any) -> None:
        """Tell displays something."""
        if self._events:
            self._events.write(json.dumps({"event": kind, "time": time.time(), **fields}, ensure_ascii=False) + "\n")
            self._events.flush()

    def begin(self) -> None:
        """Start the clock of the first step."""
        self._last_step = time.perf_counter()

    def step(self, step: int, epoch: float, report: StepReport) -> None:
        """Record a step that was taken (`step` counts it); its loss is written once it is known, a step late."""
        for micro_batch, ids in report.ids:
            self._keep("samples", step, {"step": step - 1, "micro": micro_batch, "ids": ids})
        if not self._place.leads:
            return
        now = time.perf_counter()
        speed = report.samples / max(now - self._last_step, 1e-9)
        self._images_per_s = 0.9 * self._images_per_s + 0.1 * speed if self._images_per_s else speed
        self._last_step = now
        self._pending.append((step, epoch, speed, report))
        self._settle(waiting=1)

    def _settle(self, waiting: int = 0) -> None:
        """Write what is known of the steps so far; leave at most `waiting` steps that are not."""
        while self._pending and (len(self._pending) > waiting or self._pending[0][3].losses.known()):
            step, epoch, speed, report = self._pending.pop(0)
            row = {"step": step, "epoch": round(epoch, 4), "loss": report.loss, "lr": report.rate}
            self._metric(step, row | {"images_per_s": round(speed, 2)})
            now = time.perf_counter()
            if now - self._last_event >= _EVENT_PERIOD_S:
                self._last_event = now
                self.event("step", **row, images_per_s=round(self._images_per_s, 2))

    def phases(self, attempt: int, phases: Phases) -> None:
        """Say, after an attempt's first step, where the time went since the end of the last."""
        if not phases.done:
            phases.done = True
            phases.end("step")
            self.event("phases", attempt=attempt, why=phases.why, seconds=phases.rounded())

    def evaluation(self, step: int, epoch: float, result: dict[str, float]) -> None:
        """Record an evaluation after `step` steps."""
        self._settle()
        if self._place.leads:
            row = {"step": step, "epoch": round(epoch, 4)} | {f"val_{k}": v for k, v in result.items()}
            self._metric(step, row)
            self.event("evaluation", **row)
        self._last_step = time.perf_counter()

    def uncommitted(self) -> Lines:
        """Return a copy of the lines that no commit is known to hold."""
        self._settle()
        return {log: list(lines) for log, lines in self._lines.items()}

    def committed(self, step: int) -> None:
        """Forget the lines up to `step`: the store has them."""
        self._lines = {log: [x for x in lines if x[0] > step] for log, lines in self._lines.items()}

    def recover(self, lines: Lines) -> None:
        """Take over lines that an earlier attempt had not committed."""
        for log, some in lines.items():
            self._lines.setdefault(log, [])[:0] = some

    def _metric(self, step: int, row: dict[str, Any]) -> None:
        self._keep("metrics", step, row)
        if self._board:
            self._board.add(step, row)

    def _keep(self, log: str, step: int, row: dict[str, Any]) -> None:
        self._lines.setdefault(log, []).append((step, json.dumps(row)))

    def close(self) -> None:
        """Flush and close files."""
        self._settle()
        if self._board:
            self._board.close()
        if self._events:
            self._events.close()

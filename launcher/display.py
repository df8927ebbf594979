"""What the user sees while a run goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launcher.events import Event

_PLAIN_PERIOD_S = 5.0
_BLINK_S = 0.05


class Display(Protocol):
    """Shows events."""

    def __call__(self, event: Event) -> None:
        """Show one event of a run."""

    def close(self) -> None:
        """Leave the terminal tidy."""


def make_display() -> Display:
    """Return the display that suits where standard error goes."""
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay()


def spell(event: Event) -> str | None:
    """Return an event as a line, None for one that deserves none."""
    match event["event"]:
        case "attempt":
            where = f"from step {event['step']}" if event["step"] else "from the start"
            return f"attempt {event['attempt']}: {where} of {event['steps']}, {event['world']} processes"
        case "phases":
            return spell_phases(event)
        case "evaluation":
            return (
                f"step {event['step']}  epoch {event['epoch']:.2f}  val loss {event['val_loss']:.4f}"
                f"  top-1 {event['val_top1']:.2%}  top-5 {event['val_top5']:.2%}"
            )
        case "note":
            return str(event["text"])
    return None


def spell_phases(event: Event) -> str:
    """Return in one line how long an attempt took to its first step, and what took longer than a blink."""
    seconds = dict(event["seconds"])
    total = seconds.pop("total")
    parts = ", ".join(f"{phase} {s:.1f}" for phase, s in seconds.items() if s >= _BLINK_S)
    why = f" after {event['why']}" if event["why"] else ""
    return f"attempt {event['attempt']}: first step in {total:.1f} s{why}" + (f" ({parts})" if parts else "")


def spell_step(event: Event) -> str:
    """Return a step event as a line."""
    return (
        f"step {event['step']}  epoch {event['epoch']:.2f}  loss {event['loss']:.4f}  lr {event['lr']:.2e}"
        f"  {event['images_per_s']:.1f} images/s"
    )


class PlainDisplay:
    """A line an event; steps every few seconds."""

    def __init__(self) -> None:
        self._next_step = 0.0

    def __call__(self, event: Event) -> None:
        """See `Display`."""
        line = spell(event)
        if event["event"] == "step" and time.monotonic() >= self._next_step:
            self._next_step = time.monotonic() + _PLAIN_PERIOD_S
            line = spell_step(event)
        if event["event"] == "snapshot":
            line = f"snapshot of step {event['step']}: {event['bytes_new']:,} bytes new"
        if line:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Display`."""


class LiveDisplay:
    """A progress bar with loss, images/s, time left and the last snapshot; other events scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epoch {task.fields[epoch]:.2f}  loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            TextColumn("last snapshot: {task.fields[snapshot]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, epoch=0.0, loss=0.0, speed=0.0, snapshot="none")
        self._progress.start()

    def __call__(self, event: Event) -> None:
        """See `Display`."""
        line = spell(event)
        if line:
            self._progress.console.print(line, highlight=False, markup=False)
        match event["event"]:
            case "attempt":
                self._progress.reset(self._task, total=event["steps"], completed=event["step"])
                if event["step"]:
                    self._progress.update(self._task, snapshot=f"step {event['step']}")
            case "step":
                fields = {"epoch": event["epoch"], "loss": event["loss"], "speed": event["images_per_s"]}
                self._progress.update(self._task, completed=event["step"], **fields)
            case "snapshot":
                self._progress.update(self._task, completed=event["step"], snapshot=f"step {event['step']}")

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()

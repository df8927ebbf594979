"""Printing a benchmark: one Markdown table, under one line that says what it ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata


def render(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table: the first column flush left, the others flush right."""
    widths = [max(len(line[i]) for line in [headers, *rows]) for i in range(len(headers))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in [headers, rule, *rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def conditions(packages: Sequence[str] = ("torch",)) -> str:
    """Say what a benchmark runs on: versions, processors, and how busy they were before it began."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {versions}; {cores} cores ({platform.machine()}){busy}"

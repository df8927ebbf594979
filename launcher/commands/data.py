"""`fglaunch data get NAME`: download a known data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from launcher import datasets
from launcher.foreground import say


def call(args: argparse.Namespace) -> int:
    """Run the command."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(args.name, total=None)
        folder = datasets.get(
            args.name,
            Path(args.into),
            args.mirror,
            lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    say(f"{args.name} is in {folder}")
    return 0

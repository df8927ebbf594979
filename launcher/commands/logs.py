"""`fglaunch logs RUN`: what ranks wrote."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fgtrain.errors import UserError
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.foreground import node_folders
from launcher.prepare import default_store
from launcher.status import existing_run, live_state, read_status

_POLL_S = 0.2


def call(args: argparse.Namespace) -> int:
    """Print the logs of one attempt (the newest unless told), a rank after the other; -f goes on with what is added."""
    runs = RunStore(open_store(args.store or default_store()), args.run)
    existing_run(runs)
    files = find(node_folders(runs), args.attempt, args.rank)
    if not files and not args.follow:
        raise UserError(f"{args.run}: no such logs on this machine (attempt {args.attempt or 'any'}, rank {args.rank})")
    offsets: dict[Path, int] = {}
    while True:
        ended = live_state(read_status(runs)) != "running"
        for file in find(node_folders(runs), args.attempt, args.rank):
            _print_new(file, offsets)
        if ended or not args.follow:
            return 0
        time.sleep(_POLL_S)


def find(folders: list[Path], attempt: int | None, rank: int | None) -> list[Path]:
    """Return the logs (`<attempt>-<rank>.log`) of an attempt, the newest if None, in order of rank."""
    files = [f for folder in folders for f in (folder / "logs").glob("[0-9]*-*.log")]
    wanted = attempt if attempt is not None else max((_numbers(f)[0] for f in files), default=None)
    chosen = [f for f in files if _numbers(f)[0] == wanted and rank in (None, _numbers(f)[1])]
    return sorted(chosen, key=_numbers)


def _numbers(file: Path) -> tuple[int, int]:
    attempt, rank = file.stem.split("-")
    return int(attempt), int(rank)


def _print_new(file: Path, offsets: dict[Path, int]) -> None:
    with file.open("rb") as source:
        source.seek(offsets.get(file, 0))
        data = source.read()
    if data and file not in offsets:
        attempt, rank = _numbers(file)
        print(f"--- attempt {attempt}, rank {rank} ({file})")
    if data:
        offsets[file] = offsets.get(file, 0) + len(data)
        sys.stdout.flush()
        sys.stdout.buffer.write(data)  # as bytes: a read may end within a character
        sys.stdout.flush()

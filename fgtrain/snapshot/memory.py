"""Where a node's ranks keep staged shares: host memory that outlives them. Light.

`python -m fgtrain.snapshot.memory RUN NODE_FOLDER ID` frees what a run holds on a node, once the run is over.

A run's memory is found by its identity (`RunFile.identity`), not by its name alone: other runs of the same name, in
other stores or begun anew, have the same working folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


def memory_folder(run: str, node_folder: Path, identity: str) -> Path:
    """Return the folder for a run on a node: in $FGLAUNCH_MEMORY or /dev/shm, else on the node's disk.

    The same node (the same working folder) always gets the same one, so that a new attempt finds what the last left.
    """
    return _of_name(run, node_folder) / identity


def _of_name(run: str, node_folder: Path) -> Path:
    """Return where all runs of a name have their folders on a node."""
    root = os.environ.get("FGLAUNCH_MEMORY")
    if root is None and not os.access(_SHARED_MEMORY, os.W_OK):
        return node_folder / "memory"
    base = Path(root) if root else _SHARED_MEMORY / f"fglaunch-{os.getuid()}"
    node = hashlib.sha256(str(node_folder.resolve()).encode()).hexdigest()[:12]
    return base / f"{run}-{node}"


def memory_folders(run: str, node_folder: Path, identity: str) -> tuple[Path, ...]:
    """Return where a node's ranks may stage, from the best: host memory, and the node's disk where that is full."""
    on_disk = node_folder / "memory" / identity
    return tuple(dict.fromkeys((memory_folder(run, node_folder, identity), on_disk)))


def rank_folder(memory: Path, attempt: int, rank: int) -> Path:
    """Return the folder in which one rank of one attempt stages."""
    return memory / f"{attempt:05d}-{rank:05d}"


def forget_older(memory: Path, attempt: int) -> None:
    """Remove what attempts before `attempt` staged on this node."""
    for folder in memory.glob("*"):
        if folder.name < f"{attempt:05d}":
            shutil.rmtree(folder, ignore_errors=True)


def forget(memory: Path) -> None:
    """Remove everything a run staged on this node."""
    shutil.rmtree(memory, ignore_errors=True)
    with contextlib.suppress(OSError):
        memory.parent.rmdir()  # unless another run of this name has something there


def forget_others(run: str, node_folder: Path, identity: str) -> None:
    """Remove what earlier runs of the same name staged on this node: none of them is at work here any more."""
    for place in (_of_name(run, node_folder), node_folder / "memory"):
        for folder in place.glob("*"):
            if folder.name != identity:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for staged in memory_folders(sys.argv[1], Path(sys.argv[2]), sys.argv[3]):
        forget(staged)

"""Where a run's agents meet now: what an agent was started with, or what its supervisor has said since. Light.

    python -m fgtrain.endpoint FOLDER HOST:PORT [LOST_NODE]...

writes it into a node's working folder: the store that agents meet in has been started anew, maybe on another node.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FILE = "endpoint"


class Place(NamedTuple):
    """Where the store is, and nodes whose agents are known to be gone since they met last."""

    host: str
    port: int
    lost: frozenset[str] = frozenset()


class Endpoint(NamedTuple):
    """What an agent knows of it: `first`, HOST:PORT, until the node's folder says something else."""

    first: str
    folder: Path

    def now(self) -> Place:
        """Return where to meet."""
        try:
            endpoint, *lost = (self.folder / FILE).read_text().splitlines()
        except (OSError, ValueError):
            endpoint, lost = self.first, []
        host, _, port = endpoint.rpartition(":")
        return Place(host.strip("[]"), int(port), frozenset(lost))


def tell(folder: Path, endpoint: str, lost: Sequence[str] = ()) -> None:
    """Have a node's agent meet the others elsewhere, once it has lost the store that it knows."""
    part = folder / f".{FILE}-{os.getpid()}.part"
    part.write_text("\n".join([endpoint, *lost]))
    part.replace(folder / FILE)


def forget(folder: Path) -> None:
    """Begin a new life of a node's agent: what an earlier one was told is void."""
    (folder / FILE).unlink(missing_ok=True)


if __name__ == "__main__":
    tell(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

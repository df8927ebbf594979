"""The store that agents meet in, in a process of its own: it outlives agents and workers, but not its machine.

When it is gone, the supervisor starts another elsewhere, and agents go on there (see `fgtrain.endpoint`).

python -m fgtrain.rendezvous --port PORT
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from fgtrain import lease
from fgtrain.lifeline import die_with_parent

_LAST_S = 60.0
"""How long agents may need the store after SIGTERM, which some clusters send to everything at once."""
_LOOK_S = 0.2
_ESTABLISHED = "01"  # Source: the kernel's include/net/tcp_states.h


def main() -> None:
    """Serve until SIGTERM, and then while agents still use it: their workers take a last snapshot."""
    parser = argparse.ArgumentParser(prog="fgtrain.rendezvous")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    starter = os.environ.get("FGLAUNCH_STARTER_PID")
    die_with_parent(parent=int(starter) if starter else None)
    lease.watch()
    done = threading.Event()

    def finish(signum: int, frame: FrameType | None) -> None:
        done.set()

    signal.signal(signal.SIGTERM, finish)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("0.0.0.0", args.port, is_master=True, wait_for_workers=False)
    done.wait()
    deadline = time.monotonic() + _LAST_S
    while connections(args.port) > 1 and time.monotonic() < deadline:  # one is this process's own
        time.sleep(_LOOK_S)
    del store


def connections(port: int) -> int:
    """Return how many connections there are to a TCP port of this machine; 0 where there is no /proc."""
    count = 0
    for table in (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")):
        if table.exists():
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
            count += sum(row[3] == _ESTABLISHED and int(row[1].rpartition(":")[2], 16) == port for row in rows)
    return count


if __name__ == "__main__":
    main()

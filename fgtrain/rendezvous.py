"""The store that agents meet in, in a process of its own: no worker node's death takes it along.

python -m fgtrain.rendezvous --port PORT
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from types import FrameType

from fgtrain import lease
from fgtrain.lifeline import die_with_parent


def main() -> None:
    """Serve until SIGTERM."""
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
    del store


if __name__ == "__main__":
    main()

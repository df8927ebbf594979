"""One node's agent: torchrun, with a lifeline to whoever started it.

    python -m fgtrain.agent <torchrun arguments> -m fgtrain.worker STORE RUN FOLDER

Without the supervisor, the agent is asked to stop, and its workers with it; without the agent, its workers are killed.
Beside it runs an attendant (`fgtrain.attendant`). When its node was told to leave, it does (`fgtrain.departure`).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fgtrain.departure import EXIT_LEFT, Departure, attended, node_name, obey
from fgtrain.errors import UserError
from fgtrain.lifeline import die_with_parent


def main() -> int:
    """Run torchrun on this process's arguments; returns the exit code."""
    starter = os.environ.get("FGLAUNCH_STARTER_PID")
    die_with_parent(signal.SIGTERM, parent=int(starter) if starter else None)
    os.environ["FGLAUNCH_AGENT_PID"] = str(os.getpid())
    store, run, folder = sys.argv[-3:]
    try:
        departure = Departure(Path(folder), node_name(folder))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    with attended(store, run, folder, node_name(folder)):
        from torch.distributed.run import main as torchrun

        asked_to_go = obey(departure)
        try:
            torchrun()
        except asked_to_go:
            return EXIT_LEFT
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One node's agent: torchrun's, with a lifeline to whoever started it.

    python -m fgtrain.agent <torchrun arguments> -m fgtrain.worker STORE RUN FOLDER

Without the supervisor, the agent is asked to stop, and its workers with it; without the agent, its workers are killed.
Beside it runs an attendant (`fgtrain.attendant`). When its node was told to leave, it does (`fgtrain.departure`).
Exit status 76: there is no store to meet in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from fgtrain import endpoint, lease, warm
from fgtrain.departure import Departure, attended, node_name
from fgtrain.errors import UserError
from fgtrain.lifeline import die_with_parent
from fgtrain.snapshot.memory import forget_others


def main() -> int:
    """Run an agent on this process's arguments; returns the exit code."""
    starter = os.environ.get("FGLAUNCH_STARTER_PID")
    die_with_parent(signal.SIGTERM, parent=int(starter) if starter else None)
    again = os.environ.get("FGLAUNCH_AGENT_PID") == str(os.getpid())  # see `elastic`: the same life of the node
    lease.watch()
    os.environ["FGLAUNCH_AGENT_PID"] = str(os.getpid())
    _reap()
    store, run, folder = sys.argv[-3:]
    try:
        if not again:
            endpoint.forget(Path(folder))
            if identity := os.environ.get("FGLAUNCH_RUN_ID"):
                forget_others(run, Path(folder), identity)
        departure = Departure(Path(folder), node_name(folder), again=again)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    warm.keep([store, run, folder])  # it imports torch while this process does
    with attended(store, run, folder, node_name(folder)):
        from fgtrain.elastic import run as work

        return work(sys.argv[1:], departure, again=again)


def _reap() -> None:
    """Bury what an agent that this process was before has left (see `elastic`)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main())

"""One node's agent: torchrun's, with a lifeline to whoever started it.

    python -m fgtrain.agent <torchrun arguments> -m fgtrain.worker STORE RUN FOLDER

Without the supervisor, the agent is asked to stop, and its workers with it; without the agent, its workers are killed.
Exit status 76: there is no store to meet in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from fgtrain import warm
from fgtrain.lifeline import die_with_parent


def main() -> int:
    """Run an agent on this process's arguments."""
    starter = os.environ.get("FGLAUNCH_STARTER_PID")
    die_with_parent(signal.SIGTERM, parent=int(starter) if starter else None)
    os.environ["FGLAUNCH_AGENT_PID"] = str(os.getpid())
    _reap()
    worker_args = sys.argv[sys.argv.index("fgtrain.worker") + 1 :]
    warm.keep(worker_args)  # it imports torch while this process does
    from fgtrain.elastic import run

    return run(sys.argv[1:])


def _reap() -> None:
    """Bury what an agent that this process was before has left (see `elastic`)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main())

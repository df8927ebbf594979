"""One node's agent: torchrun, with a lifeline to whoever started it.

    python -m fgtrain.agent <torchrun arguments>

Without the supervisor, the agent is asked to stop, and its workers with it; without the agent, its workers are killed.
"""

from __future__ import annotations

import os
import signal

from fgtrain import lease
from fgtrain.lifeline import die_with_parent


def main() -> None:
    """Run torchrun on this process's arguments."""
    starter = os.environ.get("FGLAUNCH_STARTER_PID")
    die_with_parent(signal.SIGTERM, parent=int(starter) if starter else None)
    lease.watch()
    os.environ["FGLAUNCH_AGENT_PID"] = str(os.getpid())
    from torch.distributed.run import main as torchrun

    torchrun()


if __name__ == "__main__":
    main()

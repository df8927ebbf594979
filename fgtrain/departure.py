"""How a node's agent goes when the node was told to leave: its ranks have left, and it does not start them again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from fgtrain import notices
from fgtrain.notice import Flag
from fgtrain.notices import Source

EXIT_LEFT = 75
"""Exit code of a rank that was asked to leave, and of the agent of a node that was: the snapshot is committed, another
try elsewhere goes on from there. Source: sysexits.h, EX_TEMPFAIL."""

NODE = "FGLAUNCH_NODE"
"""In an agent's environment: its node's name in the run."""

ENDED = b"."
"""What an agent tells its attendant when it ends; the pipe also closes where it is killed, or begins anew in place."""

_ATTENDANT_END_S = 12.0


class Departure:
    """What a node's agent knows of its end, and how it passes signals on."""

    def __init__(self, folder: Path, node: str, *, again: bool = False) -> None:
        """Begin a new life, in which what earlier ones were told is void; or the same one `again`.

        Raises:
            UserError: $FGLAUNCH_NOTICES makes no sense.
        """
        self.flag = Flag(folder)
        if not again:
            self.flag.lower()
        self._sources: list[Source] = notices.find(notices.this_machine(node))
        signal.signal(signal.SIGUSR1, self._take)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.signalled(signal.Signals(signum))

    def signalled(self, sig: signal.Signals) -> None:
        """A signal came. A bare SIGTERM is no notice: it comes from the supervisor, or from who pressed Ctrl-C."""
        now = time.time()
        notice = notices.explain(self._sources, sig, now)
        if notice.source != "signal" or sig == signal.SIGUSR1:
            self.flag.raise_(notice, leave=True, now=now)


@contextlib.contextmanager
def attended(store: str, run: str, folder: str, node: str) -> Iterator[None]:
    """Have an attendant beside this process; afterwards give it the time to ship the last lines."""
    argv = [sys.executable, "-m", "fgtrain.attendant", store, run, folder, node]
    log = (Path(folder) / "attendant.log").open("ab")
    with log, subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log) as attendant:
        try:
            yield
        finally:
            assert attendant.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                attendant.stdin.write(ENDED)
                attendant.stdin.close()
            try:
                attendant.wait(_ATTENDANT_END_S)
            except subprocess.TimeoutExpired:
                attendant.kill()


def node_name(folder: str) -> str:
    """Return this node's name in the run."""
    return os.environ.get(NODE) or Path(folder).name

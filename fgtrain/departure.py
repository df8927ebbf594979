"""How a node's agent goes when the node was told to leave: its ranks have left, and it does not start them again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
_BACK_OFF_S = (0.0, 0.5, 5.0, 60.0)  # before an attendant that died is started again
_SETTLED_S = 60.0  # after so long, a death is not counted with those before


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


class Attendant:
    """The process beside an agent, started again when it alone dies: training does not depend on it."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self._log = list(argv), log
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._keep, name="attendant", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def _keep(self) -> None:
        deaths = 0
        while True:
            begun, code = time.monotonic(), self._process.wait()
            deaths = 0 if time.monotonic() - begun > _SETTLED_S else deaths + 1
            if self._over.wait(_BACK_OFF_S[min(deaths, len(_BACK_OFF_S) - 1)]):
                return
            with self._lock:
                if self._over.is_set():
                    return
                print(f"the attendant ended ({code}): started again", file=sys.stderr, flush=True)
                with contextlib.suppress(OSError):  # out of memory, say: later, perhaps
                    self._process = self._start()

    def end(self) -> None:
        """Tell it that the agent ends, and give it the time to ship the last lines."""
        self._over.set()
        with self._lock:
            process = self._process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(ENDED)
            process.stdin.close()
        try:
            process.wait(_ATTENDANT_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def attended(store: str, run: str, folder: str, node: str) -> Iterator[Attendant]:
    """Have an attendant beside this process; afterwards give it the time to ship the last lines."""
    argv = [sys.executable, "-m", "fgtrain.attendant", store, run, folder, node]
    attendant = Attendant(argv, Path(folder) / "attendant.log")
    try:
        yield attendant
    finally:
        attendant.end()


def node_name(folder: str) -> str:
    """Return this node's name in the run."""
    return os.environ.get(NODE) or Path(folder).name

"""Our side of SkyPilot's driver: a child process that is asked and answers, a line of JSON each."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from cluster import ClusterError

DRIVER = Path(__file__).with_name("_sky_driver.py")
_END_S = 5.0
_SHOWN = 500  # characters of a driver's last words


class Driver:
    """SkyPilot, in a process of its own; any thread may ask, one at a time. Started when it is first asked."""

    def __init__(self, python: Path, log: Path, program: Path = DRIVER) -> None:
        """Make one.

        Args:
            python: the interpreter of an environment that has SkyPilot.
            log: where all that SkyPilot prints goes.
            program: the driver.
        """
        self._argv, self._log = [str(python), "-I", "-u", str(program)], log
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._number = 0

    def ask(self, action: str, **arguments: Any) -> Any:
        """Have an action of `cluster._sky_driver` done, however long it takes.

        Raises:
            ClusterError: it cannot be done, or the driver died.
        """
        with self._turn:
            process = self._running()
            self._number += 1
            line = json.dumps({"id": self._number, "do": action, **arguments})
            answer = _converse(process, line)
            if answer is None:
                self._process = None
                raise ClusterError(f"SkyPilot's driver died ({self._log}): {self._last_words()}")
        assert answer["id"] == self._number, answer
        if "error" in answer:
            raise ClusterError(f"SkyPilot: {' '.join(answer['error'].split())}")
        return answer["value"]

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            try:
                self._process = self._start()
            except OSError as error:
                raise ClusterError(f"cannot start SkyPilot's driver: {error}") from error
            atexit.register(self.close)
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", **os.environ},
                start_new_session=True,  # Ctrl-C is ours to deal with
            )

    def abort(self) -> None:
        """Have what is being asked fail at once; SkyPilot's server goes on with it. Takes no lock, does not wait."""
        if process := self._process:
            process.kill()

    def _last_words(self) -> str:
        words = " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())
        return words[-_SHOWN:] or "it said nothing"

    def close(self) -> None:
        """End it; what SkyPilot's server is doing goes on."""
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(0 if self._turn.locked() else _END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _converse(process: subprocess.Popen[str], line: str) -> dict[str, Any] | None:
    """Send a request and return its answer; None if there is nobody any more."""
    source: IO[str] | None = process.stdout
    assert process.stdin is not None
    assert source is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        said = source.readline()
    except (OSError, ValueError):  # closed meanwhile
        said = ""
    if not said:
        process.kill()
        process.wait()
        return None
    answer: dict[str, Any] = json.loads(said)
    return answer


def say(text: str) -> None:
    """Tell the user what takes long."""
    print(text, file=sys.stderr, flush=True)

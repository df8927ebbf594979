"""Workers that are stopped are told from those that work, and given time to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fgtrain.stopped import Stopped, is_stopped
from tests.testbed.runs import wait_for


def test_only_what_stays_stopped_is_named() -> None:
    states = {7: True, 8: False}
    stopped = Stopped(3.0, lambda pid: states[pid])
    assert stopped.look([7, 8], 10.0) == []
    assert stopped.look([7, 8], 12.9) == []
    assert stopped.look([7, 8], 13.0) == [7]
    states[7] = False
    assert stopped.look([7, 8], 14.0) == []
    states[7] = True
    assert stopped.look([7, 8], 15.0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="states are read from /proc")
def test_kernel_says_what_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(process.pid), "it is stopped")
        os.kill(process.pid, signal.SIGKILL)
    assert not is_stopped(process.pid)

"""Kubernetes: a pod that is to go has its `preStop` hook run, which makes a file; then its grace period runs.

SIGTERM, which Kubernetes sends to a container's first process, does not reach an agent; one that comes is the
supervisor's. FGLAUNCH_POD_ENDS names the file. How long the grace is, the pod cannot know: it may be deleted with
another one than it asked for, and is given less where its whole machine shuts down.

Source: Kubernetes documentation, "Pod Lifecycle", Termination of Pods
(kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source

VARIABLE = "FGLAUNCH_POD_ENDS"
FILE = Path("/dev/shm/fglaunch-pod-ends")
"""Where it is unless said otherwise: it goes with the pod."""

_PERIOD_S = 0.5


class Kubernetes(Source):
    """The file that says that the pod ends."""

    name = "kubernetes"

    def __init__(self, file: Path, pause: Callable[[float], None] = time.sleep) -> None:
        self._file, self._pause = file, pause
        self._looked = False
        self.watches = (self.watch,)

    def watch(self) -> list[Notice]:
        """Return what the pod is told now; the first call at once, later ones after a moment."""
        if self._looked:
            self._pause(_PERIOD_S)
        self._looked = True
        try:
            told = self._file.stat().st_mtime
        except FileNotFoundError:
            return []
        return [Notice(source="kubernetes", what="the pod is to go", id=f"pod {told}", loss=True, time=told)]


def find(machine: Machine) -> Kubernetes | None:
    """See `fgtrain.notices`."""
    if machine.chosen is not None and "kubernetes" not in machine.chosen:
        return None
    file = machine.env.get(VARIABLE)
    return Kubernetes(Path(file) if file else FILE) if file or machine.chosen else None

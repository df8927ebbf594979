"""Kubernetes: a pod that is to go gets SIGTERM, and SIGKILL when its grace period is over.

The period is 30 seconds unless the pod says otherwise (`terminationGracePeriodSeconds`), which it is not told:
`FGLAUNCH_GRACE_S` in its environment does.

Source: Kubernetes documentation, "Pod Lifecycle", Termination of Pods
(kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination).
"""

from __future__ import annotations

import contextlib
import signal

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source

_GRACE_S = 30.0


class Kubernetes(Source):
    """The signal that ends a pod."""

    name = "kubernetes"

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s

    def signalled(self, sig: signal.Signals, now: float) -> Notice | None:
        """See `Source.signalled`."""
        if sig != signal.SIGTERM:
            return None
        id_, deadline = f"pod {now}", now + self._grace_s
        return Notice(source="kubernetes", what="the pod is to go", id=id_, loss=True, time=now, deadline=deadline)


def find(machine: Machine) -> Kubernetes | None:
    """See `fgtrain.notices`."""
    if "KUBERNETES_SERVICE_HOST" not in machine.env:
        return None
    grace_s = _GRACE_S
    with contextlib.suppress(ValueError):
        grace_s = float(machine.env.get("FGLAUNCH_GRACE_S", ""))
    return Kubernetes(grace_s)

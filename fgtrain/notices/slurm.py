"""Slurm: what its signals mean to a job step.

`--signal=USR1@SECONDS` asks for SIGUSR1 that long before the time limit; on preemption, and `KillWait` seconds before
the end in any case, comes SIGTERM, then SIGKILL.

Source: sbatch(1), options --signal and output variable SLURM_JOB_END_TIME; slurm.conf(5), KillWait (default 30 s) and
GraceTime; slurm.schedmd.com/preempt.html.
"""

from __future__ import annotations

import signal

from fgtrain.notice import Notice
from fgtrain.notices import Machine, Source

_KILL_WAIT_S = 30.0


class Slurm(Source):
    """Signals within a Slurm job."""

    name = "slurm"

    def __init__(self, job: str, end: float | None) -> None:
        """`end`: when the job's time is up, if known (Unix seconds)."""
        self._job, self._end = job, end

    def signalled(self, sig: signal.Signals, now: float) -> Notice:
        """See `Source.signalled`."""
        deadline = now + _KILL_WAIT_S
        if sig == signal.SIGUSR1:
            deadline = self._end if self._end and self._end > now else deadline
        what, id_ = f"{sig.name} to job {self._job}", f"{self._job} {sig.name} {now}"
        return Notice(source="slurm", what=what, id=id_, loss=True, time=now, deadline=deadline)


def find(machine: Machine) -> Slurm | None:
    """See `fgtrain.notices`."""
    job, end = machine.env.get("SLURM_JOB_ID"), machine.env.get("SLURM_JOB_END_TIME", "")
    return Slurm(job, float(end) if end.isdigit() else None) if job else None

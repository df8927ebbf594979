"""What a run's job runs: its supervisor, inside the allocation. `python -m launcher.job STORE RUN`

Every time the job begins, the run goes on from its newest snapshot. When the job's time is nearly over (SIGUSR1), or
its nodes are taken away, a last snapshot is committed and another allocation asked for, as the cluster's settings say.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from cluster import ClusterError, Queue, open_cluster
from fgtrain.errors import FglaunchError, UserError
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import exclusions
from launcher.clusters import work_root
from launcher.display import PlainDisplay
from launcher.foreground import conclude, make_ready, resume_command, say
from launcher.outcome import EXIT_INTERRUPTED, Outcome
from launcher.queued import WAITING, Job, Opener, queue_of, read_job, write_state
from launcher.status import existing_run, read_status
from launcher.supervisor import Supervisor

PATIENCE = 3
"""Allocations in a row that commit nothing before the run is given up."""
EXIT_GOES_ON = 75  # EX_TEMPFAIL: this job is over, another allocation is to follow
_MARGIN_S = 15.0  # of the time between the signal and the end: to stop all and to ask for more
_INTERRUPTED = Outcome("stopped", EXIT_INTERRUPTED, "interrupted")


class Notice:
    """SIGUSR1: time is nearly over. The supervisor, which listens to SIGTERM, is stopped by it."""

    def __init__(self) -> None:
        self.came = self.ended = self._supervises = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR1, self._take)

    def supervise(self, supervisor: Supervisor) -> Outcome:
        """Supervise until the end, or a signal."""
        self._supervises = True
        try:
            if self.came or self.ended:
                return _INTERRUPTED
            return supervisor.supervise()
        finally:
            self._supervises = False

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.came = True
        if self._supervises:
            os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        self.ended = True


def supervise(run: RunFile, runs: RunStore, job: Job, queue: Queue, notice: Notice) -> Outcome:
    """Supervise a run on the nodes of this job until it ends, or a signal comes."""
    cluster = open_cluster(job.kind, job.settings, Path(run.cwd), work_root())
    display = PlainDisplay()
    try:
        make_ready(run, runs, job.cluster, cluster, job.world)
        grace_s = max(queue.lead_s - _MARGIN_S, queue.lead_s / 2)
        supervisor = Supervisor(
            run, runs, job.cluster, cluster, job.world, display, job.port, grace_s=grace_s, terms=job.terms
        )
        return notice.supervise(supervisor)
    except ClusterError as error:
        state = queue.look(job.id)
        if state is None or state.leaving:  # nothing can be started on nodes that are being taken away
            return _INTERRUPTED
        write_state(runs, run, job.cluster, "failed", str(error))
        return Outcome("failed", 1, str(error))
    finally:
        display.close()


Supervise = Callable[[RunFile, RunStore, Job, Queue, Notice], Outcome]


def main(argv: Sequence[str], opener: Opener = queue_of, supervise: Supervise = supervise) -> int:
    """Supervise the run to its end, or until this job must make way; returns the job's exit code."""
    notice = Notice()
    url, name = argv
    runs = RunStore(open_store(url), name)
    run = existing_run(runs)
    job = read_job(runs)
    if job is None:
        raise UserError(f"{url} says nothing of a job of {name}")
    queue = opener(job, run)
    if (status := read_status(runs)) and status.state == "finished":
        return 0
    if runs.exists("stop"):
        write_state(runs, run, job.cluster, "stopped", "stopped on request")
        return 0
    job = msgspec.structs.replace(job, id=queue.own)
    runs.write("job.json", job)
    before = runs.newest_step()
    outcome = supervise(run, runs, job, queue, notice)
    bad = excluded_here(run, runs, job) if outcome.state == "failed" and outcome.exit_code == 1 else []
    # Stopped by a signal, the run is to go on; a limit or the user's wish ends it, and not only the job.
    if outcome.exit_code == EXIT_INTERRUPTED or bad:
        if outcome.traceback:
            say(outcome.traceback.rstrip())
        idle = 0 if runs.newest_step() > before else job.idle + 1
        return make_way(run, runs, msgspec.structs.replace(job, idle=idle), queue, notice, bad)
    conclude(runs, outcome)
    return outcome.exit_code


def excluded_here(run: RunFile, runs: RunStore, job: Job) -> list[str]:
    """Return the nodes of this job that are not to be used, if without them it has too few for the run."""
    excluded = exclusions.excluded_names(runs, job.cluster)
    try:
        cluster = open_cluster(job.kind, job.settings, Path(run.cwd), work_root())
        here = [node.name for node in cluster.nodes(run.name, job.world.started)]
        exclusions.pick(cluster, run.name, job.world.started, excluded)
    except exclusions.TooFew:
        return [name for name in here if name in excluded]
    except ClusterError:  # it has no nodes any more
        pass
    return []


def make_way(run: RunFile, runs: RunStore, job: Job, queue: Queue, notice: Notice, bad: Sequence[str] = ()) -> int:
    """See to it that the run goes on, if this job was not called off; returns the exit code.

    `bad` are nodes of this job that are excluded: the run goes on without them.
    """

    def tell(state: str, message: str) -> None:
        write_state(runs, run, job.cluster, state, message)
        say(f"{run.name}: {state}: {message}")

    runs.write("job.json", job)
    now = queue.look(job.id)
    if now and now.waits:
        tell(WAITING, f"job {job.id} was put back in the queue")
        return EXIT_GOES_ON
    if now is None or now.called_off or not (notice.came or bad):
        tell("stopped", f"job {job.id} was called off")
        return EXIT_INTERRUPTED
    if job.idle >= PATIENCE:
        hint = f"the last had {_excluded_words(bad)}" if bad else "more time, or snapshots more often"
        tell("failed", f"{PATIENCE} allocations in a row committed nothing: {hint}")
        return 1
    return _leave(runs, job, queue, bad, tell) if bad else _ask_again(runs, job, queue, tell)


Tell = Callable[[str, str], None]


def _ask_again(runs: RunStore, job: Job, queue: Queue, tell: Tell) -> int:
    why = f"the time of job {job.id} was over"
    try:
        if _follows(runs, job, queue.again, why, tell):
            return EXIT_GOES_ON
    except ClusterError as error:
        tell("stopped", f"{why}, and no other followed: {error}")
        return 1
    tell("stopped", why)
    return EXIT_INTERRUPTED


def _leave(runs: RunStore, job: Job, queue: Queue, bad: Sequence[str], tell: Tell) -> int:
    why = f"job {job.id} has {_excluded_words(bad)}"
    try:
        if _follows(runs, job, queue.move, why, tell):
            return EXIT_GOES_ON
        hint = f"may not be put back; `{resume_command(runs)}` asks for others"
    except ClusterError as error:
        hint = f"cannot have others: {error}"
    tell("failed", f"{why}, and {hint}")
    return 1


def _excluded_words(nodes: Sequence[str]) -> str:
    return f"nodes that are not used any more: {', '.join(nodes)} (`fglaunch nodes` says why)"


def _follows(runs: RunStore, job: Job, ask: Callable[[str, Sequence[str]], str], why: str, tell: Tell) -> bool:
    """Ask for another allocation, without the nodes that are excluded; tells whether one is to follow.

    Raises:
        ClusterError: none is to be had.
    """
    avoid = sorted(exclusions.excluded_names(runs, job.cluster))
    tell(WAITING, why)  # first: the queue may end this process at once
    successor = ask(job.id, avoid)
    if successor not in ("", job.id):
        runs.write("job.json", msgspec.structs.replace(job, id=successor))
        tell(WAITING, f"job {successor} follows job {job.id}: {why}")
    return bool(successor)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FglaunchError, ClusterError) as error:
        say(f"fglaunch: {error}")
        sys.exit(2 if isinstance(error, (UserError, ClusterError)) else 1)

"""Runs whose supervisor is a job in a cluster's queue: submit it, watch it, call it off. The run needs none of this."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cluster import ClusterError, JobState, Queue, Request, open_queue
from fgtrain.errors import Corrupt, KeyMissing, StoreError, UserError
from fgtrain.plan import Engine, World
from fgtrain.runstore import RunFile, RunStore
from launcher import foreground
from launcher.clusters import find_cluster, find_entry, terms_on, work_root
from launcher.display import Display, make_display
from launcher.events import decode_events, whole_lines
from launcher.exclusions import excluded_names
from launcher.foreground import resume_command, say, where_results_are
from launcher.money import UNKNOWN, Terms
from launcher.outcome import EXIT_LIMIT
from launcher.status import Status, live_state, process_token, read_status

WAITING = "waiting"
"""The state of a run whose job has not begun, or not begun again."""
_POLL_S = 0.2
_LOOK_S = 2.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`job.json`: the job that carries a run's supervisor, and all that it needs to know.

    `settings` are the cluster's (of backend `kind`) as they were at the time, and `terms` its prices and lease: nodes
    may have no `clusters.toml`. `idle` counts its allocations in a row that committed nothing.
    """

    kind: str
    cluster: str
    settings: dict[str, Any]
    world: World
    port: int | None
    terms: Terms = UNKNOWN
    id: str = ""
    idle: int = 0


class _FlatJob(msgspec.Struct, frozen=True, kw_only=True):
    """`job.json` of a job that was queued when only these three things of its world were recorded."""

    kind: str
    cluster: str
    settings: dict[str, Any]
    nodes: int
    gpus: int
    engine: Engine = "torchrun"
    port: int | None
    id: str = ""
    idle: int = 0


def read_job(runs: RunStore) -> Job | None:
    """Return a run's job, None if it never had one.

    Raises:
        Corrupt: its record cannot be read.
    """
    try:
        return runs.read("job.json", Job)
    except KeyMissing:
        return None
    except Corrupt as error:
        try:
            fields = msgspec.structs.asdict(runs.read("job.json", _FlatJob))
        except Corrupt:
            raise error from None
        return Job(world=World(fields.pop("nodes"), fields.pop("gpus"), engine=fields.pop("engine")), **fields)


def queue_of(job: Job, run: RunFile) -> Queue:
    """Open the queue that a job is in.

    Raises:
        ClusterError
    """
    queue = open_queue(job.kind, job.settings, Path(run.cwd), work_root())
    if queue is None:
        raise ClusterError(f"{run.name}: its job is of {job.kind}, which has no queue")
    return queue


def check_world(world: World) -> None:
    """Refuse a world that no one job has.

    Raises:
        UserError
    """
    if world.started != world.nodes:
        spares = f" --spares {world.spares}" if world.spares else ""
        raise UserError(
            f"--nodes {world.span}{spares}: a queued job has a fixed number of nodes; ask for one number, as"
            f" --nodes {world.nodes}"
        )


def request(runs: RunStore, cluster: str, world: World) -> Request:
    """Return the job that carries a run's supervisor, on none of the cluster's nodes that are excluded."""
    avoid = tuple(sorted(excluded_names(runs, cluster)))
    return Request(runs.run, world.nodes, world.gpus, ("-m", "launcher.job", runs.store.url, runs.run), avoid)


def write_state(runs: RunStore, run: RunFile, cluster: str, state: str, message: str) -> None:
    """Say how a run stands that has no supervisor just now."""
    last = read_status(runs)
    status = Status(
        state=state,
        step=last.step if last else 0,
        steps=run.plan.steps,
        updated=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        token=process_token(os.getpid()) or "",
        cluster=cluster,
        nodes=last.nodes if last else (),
        message=message,
    )
    runs.write("status.json", status)


def submit(
    queue: Queue,
    run: RunFile,
    runs: RunStore,
    cluster: str,
    world: World,
    port: int | None,
    terms: Terms = UNKNOWN,
) -> Job:
    """Queue the job that trains a run, on nodes that come at these terms.

    Raises:
        ClusterError: the queue does not take it.
    """
    kind, settings = find_entry(cluster)
    runs.store.delete(runs.key("stop"))  # an earlier one is not meant for this job
    job = Job(kind=kind, cluster=cluster, settings=settings, world=world, port=port, terms=terms)
    runs.write("job.json", job)  # the job reads it, and may begin at once
    write_state(runs, run, cluster, WAITING, "")
    asked = request(runs, cluster, world)
    try:
        job = msgspec.structs.replace(job, id=queue.submit(asked))
    except ClusterError as error:
        write_state(runs, run, cluster, "stopped", "its job was not taken")
        if not asked.avoid:
            raise
        names = ", ".join(asked.avoid)
        raise ClusterError(f"{error} (it was to have none of {names}: `fglaunch nodes` says why)") from error
    runs.write("job.json", job)
    return job


def start(
    queue: Queue | None, run: RunFile, runs: RunStore, cluster: str, world: World, port: int | None, detach: bool
) -> int:
    """Start a run as its cluster wants it: as a job, else supervised from here; returns the exit code."""
    if queue is None and detach:
        return foreground.detach(runs, cluster, world, port)
    if queue is None:
        return foreground.supervise_here(run, runs, cluster, world, port)
    watching = Watch(queue, run, runs)
    watching.skip()
    terms = terms_on(cluster, find_cluster(cluster, Path(run.cwd)))
    job = submit(queue, run, runs, cluster, world, port, terms)
    say(f"{run.name} is job {job.id} of {cluster}: fglaunch attach {run.name} --store {runs.store.url}")
    if not detach:
        return watching.follow()
    print(run.name)
    return 0


def attach(run: RunFile, runs: RunStore) -> int | None:
    """Watch a run that a job trains; None if none does."""
    job = read_job(runs)
    if job is None or live_state(read_status(runs), runs) not in ("running", WAITING, "lost"):
        return None
    return Watch(queue_of(job, run), run, runs).follow()


Opener = Callable[[Job, RunFile], Queue]


def living(run: RunFile, runs: RunStore, opener: Opener = queue_of) -> tuple[Job, Queue, JobState] | None:
    """Return a run's job if the queue knows of it; a run that waits for one that is gone is told to be stopped.

    Raises:
        ClusterError: the queue does not answer.
    """
    job = read_job(runs)
    if job is None or not job.id:
        return None
    queue = opener(job, run)
    state = queue.look(job.id)
    if state:
        return job, queue, state
    if live_state(read_status(runs), runs) == WAITING:
        write_state(runs, run, job.cluster, "stopped", f"job {job.id} is gone")
    return None


def refuse_second(run: RunFile, runs: RunStore, opener: Opener = queue_of) -> None:
    """Refuse to go on with a run whose job will do that by itself.

    Raises:
        UserError
    """
    try:
        found = living(run, runs, opener)
    except ClusterError as error:
        say(f"note: whether a job of {run.name} is still queued cannot be told here: {error}")
        return
    if found and live_state(read_status(runs), runs) not in ("finished", "failed"):
        job, _, state = found
        raise UserError(
            f"{run.name} has job {job.id} of {job.cluster}, {state.text}, which goes on with it;"
            f" `fglaunch attach {run.name}` watches it, `fglaunch stop {run.name}` calls it off"
        )
    runs.store.delete(runs.key("job.json"))  # what goes on now is another, or no job


def stop(run: RunFile, runs: RunStore, opener: Opener = queue_of) -> bool:
    """Call off a job whose supervisor cannot be asked to stop: it waits, or has fallen silent. False: there is none.

    Raises:
        ClusterError: the queue does not answer.
    """
    if live_state(read_status(runs), runs) in ("running", "finished", "failed") or not (
        found := living(run, runs, opener)
    ):
        return False
    job, queue, _ = found
    runs.write("stop", {"asked": time.time()})  # should it begin this very moment
    queue.cancel(job.id)
    write_state(runs, run, job.cluster, "stopped", f"job {job.id} was called off")
    say(f"{run.name} is stopped; `{resume_command(runs)}` goes on")
    return True


class Watch:
    """Shows how a run fares whose supervisor is a job; the run does not care."""

    def __init__(self, queue: Queue, run: RunFile, runs: RunStore) -> None:
        self._queue, self._run, self._runs = queue, run, runs
        self._offsets: dict[str, int] = {}
        self._said = ""

    def skip(self) -> None:
        """Pass over what was said so far."""
        status = read_status(self._runs)
        for node in status.nodes if status else ():
            self._new_lines(node)

    def follow(self) -> int:
        """Watch until no job will go on with the run; returns the exit code, 0 only if it is finished."""
        display = make_display()
        try:
            while self._goes_on(display):
                next_look = time.monotonic() + _LOOK_S
                while time.monotonic() < next_look and self._show_events(display) in ("running", WAITING, "unknown"):
                    time.sleep(_POLL_S)
            self._show_events(display)
        except KeyboardInterrupt:
            display.close()
            say(f"{self._run.name} goes on; `fglaunch stop {self._run.name} --store {self._runs.store.url}` stops it")
            return 130
        finally:
            display.close()
        return self._conclude()

    def _show_events(self, display: Display) -> str:
        """Show what is new; returns the run's state."""
        try:
            status = read_status(self._runs)
        except StoreError:
            return "unknown"
        for node in status.nodes if status else ():
            for event in decode_events(self._new_lines(node)):
                display(event)
        return live_state(status, self._runs)

    def _new_lines(self, node: str) -> bytes:
        offset = self._offsets.get(node, 0)
        try:
            with (Path(node) / "events.jsonl").open("rb") as file:
                file.seek(offset)
                whole = whole_lines(file.read())
        except OSError:  # not there yet, or not seen from here
            return b""
        self._offsets[node] = offset + len(whole)
        return whole

    def _goes_on(self, display: Display) -> bool:
        """Tell whether the run's job waits or runs; say so when that changes."""
        job = read_job(self._runs)  # another one may have taken over
        assert job is not None
        try:
            state = self._queue.look(job.id)
        except ClusterError as error:
            text, alive = f"the queue does not answer: {error}", True
        else:
            text, alive = f"job {job.id}: {state.text if state else 'over'}", state is not None
        if text != self._said:
            self._said = text
            display({"event": "note", "text": text})
        return alive

    def _conclude(self) -> int:
        living(self._run, self._runs)  # a status that waits for it is set right
        status, job = read_status(self._runs), read_job(self._runs)
        assert status is not None and job is not None
        name, state = self._run.name, live_state(status, self._runs)
        logs = f"fglaunch logs {name} --store {self._runs.store.url}; the job's: {self._queue.log(name, job.id)}"
        if state == "finished":
            say(where_results_are(self._runs))
            return 0
        if state == "stopped":
            say(f"{name} is stopped: {status.message}; `{resume_command(self._runs)}` goes on")
            return 1 if status.exit_code == EXIT_LIMIT else 130
        why = status.message if state == "failed" else "its job ended without a last word"
        say(f"{name} failed: {why} (logs: {logs})")
        return status.exit_code or 1

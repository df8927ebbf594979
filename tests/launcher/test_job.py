"""What a run's job does when it must make way, and what the launching side makes of its job. The queue is a fake."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster import ClusterError, JobState, Request
from fgtrain.errors import Corrupt, UserError
from fgtrain.limits import Limits, Spend
from fgtrain.plan import World
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import job as in_job
from launcher import queued
from launcher.exclusions import Exclusion
from launcher.job import EXIT_GOES_ON, PATIENCE, Notice, make_way
from launcher.outcome import EXIT_INTERRUPTED, Outcome
from launcher.queued import WAITING, Job
from launcher.status import read_status
from tests.fgtrain.test_runstore import run_file

NUMBERS = itertools.count()
RUNNING = JobState(waits=False, text="RUNNING", starts=0, leaving=False)
PENDING = JobState(waits=True, text="PENDING (Resources)", starts=0, leaving=False)
BACK = JobState(waits=True, text="COMPLETING", starts=1, leaving=True)


class FakeQueue:
    """One job, as it is told; `answers` is what `again` returns."""

    lead_s = 60.0
    own = "17"

    def __init__(self, state: JobState | None = RUNNING, answer: str | ClusterError = "17") -> None:
        self.state, self.answer = state, answer
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.requests: list[Request] = []

    def script(self, request: Request) -> str:
        return "#!/bin/sh\n"

    def submit(self, request: Request) -> str:
        self.requests.append(request)
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer

    def look(self, job: str) -> JobState | None:
        return self.state

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def log(self, run: str, job: str) -> Path:
        return Path("/log")

    def again(self, job: str) -> str:
        self.asked.append(job)
        return self.submit(Request("", 0, 0, ()))


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "clusters.toml"))


@pytest.fixture
def run() -> RunFile:
    return msgspec.structs.replace(run_file(), name="run")


@pytest.fixture
def runs(run: RunFile) -> RunStore:
    runs = RunStore(open_store(f"memory://job-{next(NUMBERS)}"), "run")
    runs.create("run.json", run)
    return runs


@pytest.fixture
def notice() -> Iterator[Notice]:
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)}
    yield Notice()
    for sig, handler in before.items():
        signal.signal(sig, handler)


def job(**changes: object) -> Job:
    base = Job(kind="slurm", cluster="lab", settings={}, world=World(2, 1), port=None, id="17")
    return msgspec.structs.replace(base, **changes)


def said(runs: RunStore) -> tuple[str, str]:
    status = read_status(runs)
    assert status is not None
    return status.state, status.message


def test_job_that_was_put_back_waits(run: RunFile, runs: RunStore, notice: Notice) -> None:
    queue = FakeQueue(BACK)
    assert make_way(run, runs, job(), queue, notice) == EXIT_GOES_ON
    assert said(runs) == (WAITING, "job 17 was put back in the queue")
    assert not queue.asked


@pytest.mark.parametrize("state", [RUNNING, None])
def test_job_that_was_called_off_stays_so(run: RunFile, runs: RunStore, notice: Notice, state: JobState | None) -> None:
    queue = FakeQueue(state)
    assert make_way(run, runs, job(), queue, notice) == EXIT_INTERRUPTED
    assert said(runs) == ("stopped", "job 17 was called off")
    assert not queue.asked


def test_job_that_is_called_off_while_its_time_ends_asks_for_no_more(
    run: RunFile, runs: RunStore, notice: Notice
) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    queue = FakeQueue(RUNNING._replace(text="COMPLETING", called_off=True))
    make_way(run, runs, job(), queue, notice)
    assert said(runs) == ("stopped", "job 17 was called off")
    assert not queue.asked


@pytest.mark.parametrize(
    ("answer", "code", "state", "message", "next_job"),
    [
        ("17", EXIT_GOES_ON, WAITING, "the time of job 17 was over", "17"),
        ("18", EXIT_GOES_ON, WAITING, "job 18 follows job 17", "18"),
        ("", EXIT_INTERRUPTED, "stopped", "the time of job 17 was over", "17"),
        (ClusterError("no"), 1, "stopped", "the time of job 17 was over, and no other followed: no", "17"),
    ],
)
def test_job_whose_time_is_over_asks_for_more(
    run: RunFile,
    runs: RunStore,
    notice: Notice,
    answer: str | ClusterError,
    code: int,
    state: str,
    message: str,
    next_job: str,
) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    assert notice.came
    assert make_way(run, runs, job(), FakeQueue(answer=answer), notice) == code
    assert said(runs) == (state, message)
    assert queued.read_job(runs) == job(id=next_job)


def test_allocations_that_commit_nothing_come_to_an_end(run: RunFile, runs: RunStore, notice: Notice) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    queue = FakeQueue()
    assert make_way(run, runs, job(idle=PATIENCE - 1), queue, notice) == EXIT_GOES_ON
    assert make_way(run, runs, job(idle=PATIENCE), queue, notice) == 1
    assert said(runs)[0] == "failed"
    assert queue.asked == ["17"]


def run_job(runs: RunStore, queue: FakeQueue, supervise: in_job.Supervise, **changes: object) -> int:
    """Run what a job runs, with another supervisor."""
    runs.write("job.json", job(**changes))
    return in_job.main([runs.store.url, runs.run], lambda *_: queue, supervise)


LIMIT = "--max-hours 1 is reached after 1.00 h"


@pytest.mark.parametrize("told", [False, True])
def test_run_that_reaches_a_limit_says_so_and_no_job_follows(
    runs: RunStore, notice: Notice, capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    def supervise(run: RunFile, runs: RunStore, job: Job, *_: object) -> Outcome:
        if told:  # that time is nearly over, while the last snapshot is taken
            os.kill(os.getpid(), signal.SIGUSR1)
        queued.write_state(runs, run, job.cluster, "stopped", LIMIT)
        return Outcome("stopped", 1, LIMIT)

    queue = FakeQueue()
    assert run_job(runs, queue, supervise) == 1
    assert said(runs) == ("stopped", LIMIT)
    assert f"run: {LIMIT}; `fglaunch resume run" in capsys.readouterr().err
    assert not queue.asked


def test_run_that_a_signal_stops_makes_way(runs: RunStore, notice: Notice) -> None:
    def supervise(*_: object) -> Outcome:
        os.kill(os.getpid(), signal.SIGUSR1)
        return Outcome("stopped", EXIT_INTERRUPTED, "interrupted")

    queue = FakeQueue()
    assert run_job(runs, queue, supervise) == EXIT_GOES_ON
    assert queue.asked == ["17"]
    assert run_job(runs, FakeQueue(state=None), supervise) == EXIT_INTERRUPTED
    assert said(runs) == ("stopped", "job 17 was called off")


@pytest.mark.parametrize(("message", "code"), [(LIMIT, 1), ("job 17 was called off", 130)])
def test_watching_a_run_to_its_limit_ends_with_the_code_of_a_limit(
    run: RunFile, runs: RunStore, message: str, code: int
) -> None:
    runs.write("limits.json", Limits(max_hours=1))
    runs.write("spend.json", Spend(seconds=3600))
    runs.write("job.json", job(id=""))
    queued.write_state(runs, run, "slurm", "stopped", message)
    assert queued.Watch(FakeQueue(state=None), run, runs).follow() == code


class FakeSupervisor:
    """Hears SIGTERM as the real one does."""

    def __init__(self, during: Callable[[], None]) -> None:
        self._during, self.heard = during, 0

    def supervise(self) -> Outcome:
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            self._during()
        finally:
            signal.signal(signal.SIGTERM, before)
        return Outcome("stopped", 130) if self.heard else Outcome("finished", 0)

    def _hear(self, signum: int, frame: object) -> None:
        self.heard += 1


def test_notice_stops_the_supervisor_and_later_signals_nothing(notice: Notice) -> None:
    supervisor = FakeSupervisor(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert notice.supervise(supervisor).state == "stopped"
    os.kill(os.getpid(), signal.SIGTERM)  # while more time is asked for: this process lives on
    assert notice.ended


def test_notice_before_anything_began_starts_nothing(notice: Notice) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)

    def never() -> None:
        raise AssertionError("supervised")

    assert notice.supervise(FakeSupervisor(never)).state == "stopped"


def test_newest_step_is_read_from_the_manifests(runs: RunStore) -> None:
    assert in_job.newest_step(runs) == -1
    runs.store.put(runs.key("manifests/00000012-00003"), b"")
    runs.store.put(runs.key("manifests/00000008-00004"), b"")
    assert in_job.newest_step(runs) == 12


def test_job_that_the_queue_refuses_leaves_the_run_stopped(run: RunFile, runs: RunStore) -> None:
    with pytest.raises(ClusterError, match="quota"):
        queued.submit(FakeQueue(answer=ClusterError("quota")), run, runs, "slurm", World(2, 1), None)
    assert said(runs) == ("stopped", "its job was not taken")


def test_job_is_submitted_for_other_nodes_than_those_that_are_excluded(run: RunFile, runs: RunStore) -> None:
    runs.write("excluded/n7.json", Exclusion(cluster="slurm", node="n7", reason="ECC", time=0.0, run="run"))
    runs.write("excluded/n8.json", Exclusion(cluster="other", node="n8", reason="ECC", time=0.0, run="run"))
    queue = FakeQueue()
    queued.submit(queue, run, runs, "slurm", World(2, 1), None)
    [asked] = queue.requests
    assert asked.avoid == ("n7",)
    with pytest.raises(ClusterError, match=r"quota \(it was to have none of n7: `fglaunch nodes` says why\)"):
        queued.submit(FakeQueue(answer=ClusterError("quota")), run, runs, "slurm", World(2, 1), None)


def test_submitted_run_waits_and_forgets_an_earlier_wish_to_stop(run: RunFile, runs: RunStore) -> None:
    runs.write("stop", {})
    submitted = queued.submit(FakeQueue(answer="21"), run, runs, "slurm", World(2, 4), 999)
    assert submitted == queued.read_job(runs)
    assert (submitted.id, submitted.world, submitted.port) == ("21", World(2, 4), 999)
    assert said(runs)[0] == WAITING
    assert not runs.exists("stop")


def test_job_runs_the_whole_world_that_was_asked_for(run: RunFile, runs: RunStore, notice: Notice) -> None:
    world = World(2, 4, max_nodes=2, detect_s=9.0, engine="deepspeed")
    queued.submit(FakeQueue(), run, runs, "slurm", world, 999)
    supervised = []

    def supervise(run: RunFile, runs: RunStore, job: Job, *_: object) -> Outcome:
        supervised.append(job.world)
        return Outcome("stopped", 1)

    in_job.main([runs.store.url, runs.run], lambda *_: FakeQueue(), supervise)
    assert supervised == [world]
    found = queued.read_job(runs)
    assert found
    assert found.world == world


def test_job_that_an_earlier_version_queued_is_read(runs: RunStore) -> None:
    flat = {"kind": "slurm", "cluster": "lab", "settings": {}, "nodes": 2, "gpus": 4, "port": None, "id": "17"}
    runs.write("job.json", flat)
    assert queued.read_job(runs) == job(world=World(2, 4))
    runs.write("job.json", {**flat, "engine": "deepspeed", "idle": 1})
    assert queued.read_job(runs) == job(world=World(2, 4, engine="deepspeed"), idle=1)
    runs.write("job.json", {"kind": "slurm"})
    with pytest.raises(Corrupt, match=r"job\.json"):
        queued.read_job(runs)


class TestWithItsQueue:
    """The queue that a recorded job is in."""

    @pytest.fixture
    def queue(self) -> FakeQueue:
        return FakeQueue(PENDING)

    def test_second_start_is_refused_while_the_job_waits(self, run: RunFile, runs: RunStore, queue: FakeQueue) -> None:
        queued.submit(queue, run, runs, "slurm", World(2, 1), None)
        with pytest.raises(UserError, match=r"run has job 17 of slurm, PENDING \(Resources\), which goes on with it"):
            queued.refuse_second(run, runs, lambda *_: queue)

    def test_job_that_is_gone_is_forgotten(self, run: RunFile, runs: RunStore, queue: FakeQueue) -> None:
        queued.submit(queue, run, runs, "slurm", World(2, 1), None)
        queue.state = None
        queued.refuse_second(run, runs, lambda *_: queue)
        assert said(runs) == ("stopped", "job 17 is gone")
        assert queued.read_job(runs) is None

    def test_stop_cancels_a_job_that_waits(self, run: RunFile, runs: RunStore, queue: FakeQueue) -> None:
        queued.submit(queue, run, runs, "slurm", World(2, 1), None)
        assert queued.stop(run, runs, lambda *_: queue)
        assert queue.cancelled == ["17"]
        assert said(runs) == ("stopped", "job 17 was called off")

    def test_stop_leaves_a_supervisor_to_its_own_end(self, run: RunFile, runs: RunStore, queue: FakeQueue) -> None:
        queued.submit(queue, run, runs, "slurm", World(2, 1), None)
        queued.write_state(runs, run, "slurm", "running", "")
        assert not queued.stop(run, runs, lambda *_: queue)
        assert not queue.cancelled

    def test_run_without_a_job_is_not_ours(self, run: RunFile, runs: RunStore, queue: FakeQueue) -> None:
        assert queued.attach(run, runs) is None
        assert not queued.stop(run, runs, lambda *_: queue)
        queued.refuse_second(run, runs, lambda *_: queue)

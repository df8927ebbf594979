"""What a run's job does when the run ends, or it must make way. The queue is a fake."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster import ClusterError, JobState
from fgtrain.plan import World
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import job as in_job
from launcher import queued
from launcher.job import EXIT_GOES_ON, PATIENCE, Notice, make_way
from launcher.money import Prices, Terms
from launcher.outcome import EXIT_INTERRUPTED, Outcome
from launcher.queued import WAITING, Job
from tests.fgtrain.test_runstore import run_file
from tests.testbed.queues import BACK, RUNNING, FakeQueue, exclude, job, said

NUMBERS = itertools.count()


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
        ("18", EXIT_GOES_ON, WAITING, "job 18 follows job 17: the time of job 17 was over", "18"),
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


BROKEN = "job 17 has nodes that are not used any more: fake1 (`fglaunch nodes` says why)"


def fails_and_excludes(node: str) -> in_job.Supervise:
    """Return what is done in a job one of whose two nodes is found broken."""

    def supervise(run: RunFile, runs: RunStore, job: Job, *_: object) -> Outcome:
        exclude(runs, node)
        return Outcome("failed", 1, "ECC", "Traceback: ECC")

    return supervise


@pytest.mark.parametrize(
    ("answer", "code", "state", "message"),
    [
        ("17", EXIT_GOES_ON, WAITING, BROKEN),
        ("18", EXIT_GOES_ON, WAITING, f"job 18 follows job 17: {BROKEN}"),
        ("", 1, "failed", f"{BROKEN}, and may not be put back; `fglaunch resume run --store URL` asks for others"),
        (ClusterError("no"), 1, "failed", f"{BROKEN}, and cannot have others: no"),
    ],
)
def test_job_with_a_node_that_is_found_broken_goes_on_without_it(
    runs: RunStore, notice: Notice, answer: str | ClusterError, code: int, state: str, message: str
) -> None:
    queue = FakeQueue(answer=answer)
    exclude(runs, "elsewhere")
    assert run_job(runs, queue, fails_and_excludes("fake1"), kind="fake", settings={"nodes": 2}) == code
    assert said(runs) == (state, message.replace("URL", runs.store.url))
    assert (queue.moved, queue.asked) == (["17"], [])
    assert queue.requests[-1].avoid == ("elsewhere", "fake1")


def test_job_that_begins_on_a_node_that_is_excluded_leaves_it_at_once(runs: RunStore, notice: Notice) -> None:
    exclude(runs, "fake1")
    queue = FakeQueue()
    assert run_job(runs, queue, in_job.supervise, kind="fake", settings={"nodes": 2}) == EXIT_GOES_ON
    assert said(runs) == (WAITING, BROKEN)
    assert queue.moved == ["17"]


@pytest.mark.parametrize(
    ("node", "settings", "outcome"),
    [
        ("fake5", {"nodes": 2}, Outcome("failed", 1, "error")),  # not one of its own
        ("fake1", {"nodes": 3}, Outcome("failed", 1, "error")),  # there is another one
        ("fake1", {"nodes": 2}, Outcome("failed", 2, "a mistake")),
        ("fake1", {"nodes": 2}, Outcome("finished", 0)),
    ],
)
def test_job_that_ends_for_other_reasons_asks_for_no_other_nodes(
    runs: RunStore, notice: Notice, node: str, settings: dict[str, int], outcome: Outcome
) -> None:
    exclude(runs, node)
    queue = FakeQueue()
    assert run_job(runs, queue, lambda *_: outcome, kind="fake", settings=settings) == outcome.exit_code
    assert not queue.moved


def test_jobs_that_move_and_commit_nothing_come_to_an_end(runs: RunStore, notice: Notice) -> None:
    queue = FakeQueue()
    fake = {"kind": "fake", "settings": {"nodes": 2}, "idle": PATIENCE}
    assert run_job(runs, queue, fails_and_excludes("fake1"), **fake) == 1
    assert said(runs)[1].startswith(
        f"{PATIENCE} allocations in a row committed nothing: the last had nodes that are not"
    )
    assert not queue.moved


def test_job_with_a_broken_node_that_is_called_off_stays_so(runs: RunStore, notice: Notice) -> None:
    queue = FakeQueue(RUNNING._replace(text="COMPLETING", called_off=True))
    fake = {"kind": "fake", "settings": {"nodes": 2}}
    assert run_job(runs, queue, fails_and_excludes("fake1"), **fake) == EXIT_INTERRUPTED
    assert not queue.moved


def test_job_whose_time_is_over_asks_for_none_of_the_excluded_nodes(
    run: RunFile, runs: RunStore, notice: Notice
) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    exclude(runs, "n7")
    queue = FakeQueue()
    make_way(run, runs, job(), queue, notice)
    assert [asked.avoid for asked in queue.requests] == [("n7",)]


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


def test_job_runs_the_whole_world_that_was_asked_for_and_counts_by_the_terms_of_its_cluster(
    run: RunFile, runs: RunStore, notice: Notice
) -> None:
    world = World(2, 4, max_nodes=2, detect_s=9.0, engine="deepspeed")
    terms = Terms(Prices(1.5, 3.0), 300.0)
    queued.submit(FakeQueue(), run, runs, "slurm", world, 999, terms)
    supervised = []

    def supervise(run: RunFile, runs: RunStore, job: Job, *_: object) -> Outcome:
        supervised.append((job.world, job.terms))
        return Outcome("stopped", 1)

    in_job.main([runs.store.url, runs.run], lambda *_: FakeQueue(), supervise)
    assert supervised == [(world, terms)]
    found = queued.read_job(runs)
    assert found
    assert found.world == world

"""What the launching side makes of a run's job: submit, watch, refuse, call off. The queue is a fake."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from cluster import ClusterError
from fgtrain.errors import Corrupt, UserError
from fgtrain.plan import World
from fgtrain.runstore import RunFile, RunStore
from fgtrain.stores import open_store
from launcher import queued
from launcher.queued import WAITING
from launcher.status import read_status
from tests.fgtrain.test_runstore import run_file
from tests.testbed.queues import PENDING, FakeQueue, exclude, job, said

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
    runs = RunStore(open_store(f"memory://queued-{next(NUMBERS)}"), "run")
    runs.create("run.json", run)
    return runs


def test_job_that_the_queue_refuses_leaves_the_run_stopped(run: RunFile, runs: RunStore) -> None:
    with pytest.raises(ClusterError, match="quota"):
        queued.submit(FakeQueue(answer=ClusterError("quota")), run, runs, "slurm", World(2, 1), None)
    assert said(runs) == ("stopped", "its job was not taken")


def test_job_is_submitted_for_other_nodes_than_those_that_are_excluded(run: RunFile, runs: RunStore) -> None:
    exclude(runs, "n7", "slurm")
    exclude(runs, "n8", "other")
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


@pytest.mark.parametrize(("told", "code"), [(1, 1), (0, 130), (None, 130)])
def test_watching_a_run_to_its_limit_ends_with_the_code_of_a_limit(
    run: RunFile, runs: RunStore, told: int | None, code: int
) -> None:
    assert watched(run, runs, "stopped", told) == code


@pytest.mark.parametrize(("told", "code"), [(1, 1), (2, 2), (None, 1)])
def test_watching_a_run_that_fails_ends_with_the_code_of_its_job(
    run: RunFile, runs: RunStore, told: int | None, code: int
) -> None:
    assert watched(run, runs, "failed", told) == code


def watched(run: RunFile, runs: RunStore, state: str, told: int | None) -> int:
    """Return the code that watching ends with, of a run whose job ended with another."""
    runs.write("job.json", job(id=""))
    queued.write_state(runs, run, "slurm", state, "")
    status = read_status(runs)
    assert status
    runs.write("status.json", msgspec.structs.replace(status, exit_code=told))
    return queued.Watch(FakeQueue(state=None), run, runs).follow()

"""Runs as jobs of a real Slurm: told that time is over, put back in the queue, cancelled, a step of theirs killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.testbed.runs import Runs, wait_for
from tests.testbed.slurm import SlurmCluster, running

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

RECIPE = (
    *("recipes/quickstart.py", "--set", "determinism=bits", "--set", "epochs=6"),
    *("--set", "snapshots.steps=6", "--set", "snapshots.seconds=null"),
)
QUEUED = ("--cluster", "lab", "--nodes", "2", "--gpus", "1")
CLUSTERS = """
[lab]
kind = "slurm"
gres = "gpu:a100"
cpus = 2
lead_s = 60
at_limit = "submit"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    yield from running(2)


@pytest.fixture(scope="module")
def runs(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "clusters.toml").write_text(CLUSTERS)
    found = Runs(folder, FGLAUNCH_CLUSTERS=str(folder / "clusters.toml"), **slurm.env)
    yield found
    for job in slurm.call("squeue", "--noheader", "--format=%i").split():
        slurm.call("scancel", job, check=False)
    found.end()


def job_of(runs: Runs, name: str) -> str:
    return str(next(row["job"] for row in runs.json("ps") if row["run"] == name))


def state_of(runs: Runs, name: str) -> str:
    return str(next(row["state"] for row in runs.json("ps") if row["run"] == name))


def weights(runs: Runs, name: str) -> Any:
    return runs.json("snapshots", name)[-1]["weights"]


def assert_nothing_left(runs: Runs, slurm: SlurmCluster, job: str) -> None:
    wait_for(lambda: not slurm.state(job), "the job is over", 240)
    wait_for(lambda: not runs.processes(), "every process of the run is gone", 240)
    assert not [f for f in (runs.folder / "memory").rglob("*") if f.is_file()]


@pytest.mark.chaos
def test_run_over_two_jobs_and_a_requeue_ends_with_the_same_bits(runs: Runs, slurm: SlurmCluster) -> None:
    with runs.start("moved", *RECIPE, *QUEUED, "--name", "moved") as run:
        run.wait_step(3)
        first = job_of(runs, "moved")
        slurm.call("scancel", "--batch", "--signal=USR1", first)  # as Slurm does when the job's time is nearly over
        run.wait_step(8, attempt=2)
        second = job_of(runs, "moved")
        assert second != first
        slurm.call("scontrol", "requeue", second)
        slurm.hurry(second)
        assert run.wait() == 0, run.output()
        attempts = [e["step"] for e in run.events() if e["event"] == "attempt"]
        assert f"job {second}: RUNNING" in run.output()
    assert job_of(runs, "moved") == second
    assert len(attempts) == 3
    assert attempts[1] >= 3  # nothing was lost: a snapshot was taken at the next step
    assert attempts[2] >= 8
    assert_nothing_left(runs, slurm, second)
    alone = runs.call(*RECIPE, "--nodes", "1", "--gpus", "1", "--name", "alone")
    assert alone.returncode == 0, alone.stderr
    assert runs.samples("moved") == runs.samples("alone")
    assert weights(runs, "moved") == weights(runs, "alone")


def test_killed_step_is_replaced_and_scancel_leaves_nothing(runs: Runs, slurm: SlurmCluster) -> None:
    with runs.start("hurt", *RECIPE, *QUEUED, "--set", "epochs=400", "--name", "hurt") as run:
        run.wait_step(7)
        job = job_of(runs, "hurt")
        agents = [s.split()[0] for s in slurm.steps(job) if s.endswith("agent node2")]
        assert len(agents) == 1
        slurm.call("scancel", "--ctld", "--signal=KILL", agents[0], check=False)
        run.wait_step(9, attempt=2)
        assert job_of(runs, "hurt") == job
        slurm.call("scancel", job)
        assert run.wait() == 130, run.output()
        assert f"hurt is stopped: job {job} was called off" in run.output()
        done = max(e["step"] for e in run.events() if e["event"] == "step")
    assert state_of(runs, "hurt") == "stopped"
    assert_nothing_left(runs, slurm, job)
    assert runs.json("snapshots", "hurt")[-1]["step"] >= done

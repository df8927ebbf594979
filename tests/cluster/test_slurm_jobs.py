"""Jobs that carry a supervisor, on a real Slurm, with light programs in place of training: how they come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher.takeover import last_term
from tests.testbed.light_agent import hold, write_python
from tests.testbed.runs import LiveRun, Runs, wait_for
from tests.testbed.slurm import SlurmCluster, running

RECIPE = ("recipes/quickstart.py", "--nodes", "2", "--supervise", "check.level=off", "--set", "epochs=20")
CLUSTERS = 'kind = "slurm"\nlead_s = 60\npython = "{python}"\n'


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    yield from running(2)


@pytest.fixture(scope="module")
def runs(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("jobs")
    base = CLUSTERS.format(python=write_python(folder))
    late = base + 'extra = ["--begin=now+1hour"]\n'
    config = f'[same]\n{base}[other]\n{base}at_limit = "submit"\n[late]\n{late}[wrong]\n{base}acount = 3\n'
    (folder / "clusters.toml").write_text(config)
    found = Runs(folder, FGLAUNCH_CLUSTERS=str(folder / "clusters.toml"), **slurm.env)
    yield found
    for job in slurm.call("squeue", "--noheader", "--format=%i").split():
        slurm.call("scancel", job, check=False)
    found.end()


def row(runs: Runs, name: str) -> dict[str, str]:
    found: dict[str, str] = next(r for r in runs.json("ps") if r["run"] == name)
    return found


def attempts(run: LiveRun) -> list[int]:
    return [e["step"] for e in run.events() if e["event"] == "attempt"]


def lost(run: LiveRun) -> int:
    """Return how many steps were taken twice."""
    return sum(len(steps) - len(set(steps)) for steps in [[e["step"] for e in run.events() if e["event"] == "step"]])


def wait_attempt(run: LiveRun, number: int) -> None:
    wait_for(lambda: len(attempts(run)) >= number, f"attempt {number} begins")


def assert_nothing_left(runs: Runs, slurm: SlurmCluster, job: str) -> None:
    wait_for(lambda: not slurm.state(job), "the job is over", 240)
    wait_for(lambda: not runs.processes(), "every process of the run is gone", 240)


@pytest.mark.chaos
def test_job_told_that_its_time_is_over_is_gone_on_with(runs: Runs, slurm: SlurmCluster) -> None:
    gate = hold(runs.work, "told", 8)
    with runs.start("told", *RECIPE, "--set", "epochs=1", "--cluster", "same", "--name", "told") as run:
        run.wait_step(8)
        job = row(runs, "told")["job"]
        slurm.call("scancel", "--batch", "--signal=USR1", job)
        slurm.hurry(job)
        wait_attempt(run, 2)
        gate.unlink()
        assert run.wait() == 0, run.output()
        assert (len(attempts(run)), lost(run)) == (2, 0)
    assert row(runs, "told")["state"] == "finished"
    assert row(runs, "told")["job"] == job
    assert_nothing_left(runs, slurm, job)


def test_job_that_slurm_puts_back_is_gone_on_with(runs: Runs, slurm: SlurmCluster) -> None:
    gate = hold(runs.work, "back", 8)
    with runs.start("back", *RECIPE, "--set", "epochs=1", "--cluster", "same", "--name", "back") as run:
        run.wait_step(8)
        job = row(runs, "back")["job"]
        slurm.call("scontrol", "requeue", job)
        slurm.hurry(job)
        wait_attempt(run, 2)
        gate.unlink()
        assert run.wait() == 0, run.output()
        assert (len(attempts(run)), lost(run)) == (2, 0)
    assert row(runs, "back")["job"] == job
    assert_nothing_left(runs, slurm, job)


def test_preempted_job_uses_its_time_of_grace(runs: Runs, slurm: SlurmCluster) -> None:
    """Slurm tells the steps only, and ends the job a while later: by then it has made way by itself."""
    hold(runs.work, "taken", 8)
    with runs.start("taken", *RECIPE, "--cluster", "other", "--name", "taken") as run:
        run.wait_step(8)
        first = row(runs, "taken")["job"]
        slurm.call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
        wait_attempt(run, 2)
        hold(runs.work, "taken", 20)
        run.wait_step(20, attempt=2)
        second = row(runs, "taken")["job"]
        assert second != first
        assert lost(run) == 0
        assert runs.call("stop", "taken").returncode == 0
        assert run.wait() == 130, run.output()
    assert row(runs, "taken")["state"] == "stopped"
    assert_nothing_left(runs, slurm, second)


def test_killed_step_is_started_again_and_a_cancelled_job_leaves_nothing(runs: Runs, slurm: SlurmCluster) -> None:
    hold(runs.work, "hurt", 8)
    with runs.start("hurt", *RECIPE, "--cluster", "same", "--name", "hurt") as run:
        run.wait_step(8)
        job = row(runs, "hurt")["job"]
        agent = next(s.split()[0] for s in slurm.steps(job) if s.endswith("agent node1"))
        slurm.call("scancel", "--ctld", "--signal=KILL", agent, check=False)
        wait_attempt(run, 2)
        hold(runs.work, "hurt", 12)
        run.wait_step(12, attempt=2)
        assert row(runs, "hurt")["job"] == job
        slurm.call("scancel", job)
        assert run.wait() == 130, run.output()
        assert f"hurt is stopped: job {job} was called off" in run.output()
        assert_nothing_left(runs, slurm, job)
        last = run.events()[-1]
        assert (last["event"], last["step"]) == ("snapshot", 12)
    assert row(runs, "hurt")["state"] == "stopped"


def test_job_whose_run_reaches_a_limit_is_not_followed_by_another(runs: Runs, slurm: SlurmCluster) -> None:
    with runs.start("dear", *RECIPE, "--max-hours", "0.001", "--cluster", "same", "--name", "dear") as run:
        assert run.wait() == 1, run.output()
        assert "dear is stopped: --max-hours 0.001 is reached after" in run.output()
    found = row(runs, "dear")
    assert found["state"] == "stopped"
    assert found["message"].startswith("--max-hours 0.001 is reached after")
    assert_nothing_left(runs, slurm, found["job"])
    shown = slurm.call("scontrol", "--oneliner", "show", "job", found["job"])
    assert "JobState=FAILED" in shown
    assert "Restarts=0" in shown
    assert "ExitCode=1:0" in shown


def test_watching_may_end_and_begin_again(runs: Runs, slurm: SlurmCluster) -> None:
    options = ("--set", "epochs=2", "--cluster", "same", "--detect", "7")
    done = runs.call(*RECIPE, *options, "--name", "alone", "--detach")
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr
    watched = runs.call("attach", "alone")
    assert watched.returncode == 0, watched.stderr
    assert "run alone finished" in watched.stderr
    assert row(runs, "alone")["state"] == "finished"
    term = last_term(RunStore(open_store(runs.store), "alone"))
    assert term
    assert term.world.detect_s == 7
    assert_nothing_left(runs, slurm, row(runs, "alone")["job"])


def test_run_that_waits_in_the_queue_is_called_off(runs: Runs, slurm: SlurmCluster) -> None:
    assert runs.call(*RECIPE, "--cluster", "late", "--name", "patient", "--detach").returncode == 0
    job = row(runs, "patient")["job"]
    assert row(runs, "patient")["state"] == "waiting"
    again = runs.call("resume", "patient", "--cluster", "local")
    assert again.returncode == 2
    assert f"patient has job {job} of late, PENDING" in again.stderr
    assert runs.call("stop", "patient").returncode == 0
    assert row(runs, "patient")["state"] == "stopped"
    wait_for(lambda: not slurm.state(job), "the job is gone", 240)


def test_dry_run_prints_the_script_and_leaves_no_trace(runs: Runs, slurm: SlurmCluster) -> None:
    done = runs.call(*RECIPE, "--gpus", "2", "--cluster", "same", "--name", "thought", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gres=gpu:2" in done.stdout.splitlines()
    assert done.stdout.rstrip().endswith(f" -m launcher.job {runs.store} thought")
    assert not (runs.work / "thought").exists()
    assert not slurm.call("squeue", "--noheader", "--name=thought")


def test_setting_that_is_wrong_is_the_users_mistake(runs: Runs) -> None:
    done = runs.call(*RECIPE, "--cluster", "wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("fglaunch: slurm: Object contains unknown field `acount`")

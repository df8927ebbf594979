"""Jobs on a real Slurm some of whose nodes are not used any more. Light programs stand for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launcher.exclusions import Exclusion
from tests.testbed.light_agent import write_python
from tests.testbed.runs import Runs, wait_for
from tests.testbed.slurm import SlurmCluster, running

RECIPE = ("recipes/quickstart.py", "--supervise", "check.level=off", "--set", "epochs=1")
BASE = 'kind = "slurm"\nlead_s = 60\npython = "{python}"\nwork = "{work}"\n'


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    yield from running(3)


@pytest.fixture(scope="module")
def runs(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("exclusions")
    base = BASE.format(python=write_python(folder), work=folder / "shared")
    (folder / "own").write_text("node3  # the user's own\n")
    held = base + 'extra = ["--hold"]\n'
    config = f'[plain]\n{base}[own]\n{base}exclude = "{folder}/own"\n[same]\n{held}[other]\n{held}at_limit = "submit"\n'
    (folder / "clusters.toml").write_text(f'{config}[fixed]\n{held}at_limit = "stop"\nrequeue = false\n')
    found = Runs(folder, FGLAUNCH_CLUSTERS=str(folder / "clusters.toml"), **slurm.env)
    yield found
    for job in slurm.call("squeue", "--noheader", "--format=%i").split():
        slurm.call("scancel", job, check=False)
    found.end()


@pytest.fixture(autouse=True)
def lifted(runs: Runs) -> Iterator[None]:
    """Nodes that one test has excluded are the next one's again."""
    yield
    for file in (runs.folder / "shared" / ".excluded").rglob("*.json"):
        file.unlink()


def excluded(cluster: str, node: str) -> Exclusion:
    return Exclusion(cluster=cluster, node=node, reason="ECC", time=0.0, run="earlier")


def exclude(runs: Runs, cluster: str, *nodes: str) -> None:
    """Exclude nodes for the user, as a job does."""
    folder: Path = runs.folder / "shared" / ".excluded" / cluster
    folder.mkdir(parents=True, exist_ok=True)
    for node in nodes:
        (folder / f"{node}.json").write_bytes(msgspec.json.encode(excluded(cluster, node)))


def job_of(runs: Runs, name: str) -> str:
    return str(next(row["job"] for row in runs.json("ps") if row["run"] == name))


def shown(slurm: SlurmCluster, job: str) -> dict[str, str]:
    """Return what Slurm says of a job."""
    words = slurm.call("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_job_is_queued_for_other_nodes_than_those_that_jobs_have_excluded(runs: Runs, slurm: SlurmCluster) -> None:
    exclude(runs, "own", "node1", "gone")
    assert {row["node"] for row in runs.json("nodes")} == {"node1", "gone"}
    done = runs.call(*RECIPE, "--cluster", "own", "--name", "away")
    assert done.returncode == 0, done.stderr
    found = shown(slurm, job_of(runs, "away"))
    assert (found["ExcNodeList"], found["NodeList"]) == ("node[1,3]", "node2")


def test_job_for_which_no_nodes_are_left_is_refused_in_one_line(runs: Runs) -> None:
    exclude(runs, "plain", "node1", "node2")
    done = runs.call(*RECIPE, "--cluster", "plain", "--nodes", "2", "--name", "none", "--detach")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()[-1:]
    assert line.startswith("fglaunch: sbatch: ")
    assert line.endswith("not available (it was to have none of node1, node2: `fglaunch nodes` says why)")


def begin(runs: Runs, slurm: SlurmCluster, cluster: str, name: str, nodes: int = 1) -> str:
    """Let a job begin on a node that has been excluded since it was queued; returns its number."""
    done = runs.call(*RECIPE, "--cluster", cluster, "--nodes", str(nodes), "--name", name, "--detach")
    assert done.returncode == 0, done.stderr
    job = job_of(runs, name)
    exclude(runs, cluster, "node1")
    slurm.call("scontrol", "release", job)
    return job


def test_job_that_begins_on_an_excluded_node_is_put_back_for_others(runs: Runs, slurm: SlurmCluster) -> None:
    job = begin(runs, slurm, "same", "moved", nodes=2)
    wait_for(lambda: shown(slurm, job)["ExcNodeList"] == "node1", "it is not to have that node any more")
    slurm.hurry(job)
    done = runs.call("attach", "moved")
    assert done.returncode == 0, done.stderr
    found = shown(slurm, job)
    assert (found["ExcNodeList"], found["NodeList"]) == ("node1", "node[2-3]")
    assert int(found["Restarts"]) >= 1  # it asks again if Slurm did not hear which nodes it is to have none of
    assert f"moved: waiting: job {job} has nodes that are not used any more: node1" in (
        (runs.folder / "shared" / "moved" / f"slurm-{job}.log").read_text()
    )


def test_job_that_may_not_be_put_back_is_followed_by_one_for_other_nodes(runs: Runs, slurm: SlurmCluster) -> None:
    first = begin(runs, slurm, "other", "followed")
    second = wait_for(lambda: (job := job_of(runs, "followed")) != first and job, "another job follows")
    slurm.call("scontrol", "release", second)
    assert runs.call("attach", "followed").returncode == 0
    found = shown(slurm, second)
    assert (found["ExcNodeList"], found["NodeList"]) == ("node1", "node2")


def test_job_that_is_to_have_no_successor_says_so_and_resuming_asks_for_other_nodes(
    runs: Runs, slurm: SlurmCluster
) -> None:
    job = begin(runs, slurm, "fixed", "ended")
    done = runs.call("attach", "ended")
    assert done.returncode == 1
    assert (
        f"ended failed: job {job} has nodes that are not used any more: node1 (`fglaunch nodes` says why), and may not"
        in (done.stderr)
    )
    wait_for(lambda: not slurm.state(job), "the job is over")
    assert runs.call("resume", "ended", "--detach").returncode == 0
    assert shown(slurm, job_of(runs, "ended"))["ExcNodeList"] == "node1"
    assert runs.call("stop", "ended").returncode == 0


def test_job_is_not_put_back_for_nodes_that_there_are_not(runs: Runs, slurm: SlurmCluster) -> None:
    job = begin(runs, slurm, "same", "large", nodes=3)
    done = runs.call("attach", "large")
    assert done.returncode == 1
    assert "and cannot have others: the run needs 3 nodes, and Slurm has 2 beside node1" in done.stderr
    assert shown(slurm, job)["Restarts"] == "0"

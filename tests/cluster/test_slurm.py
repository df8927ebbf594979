"""The nodes of a Slurm job, on a real Slurm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import ClusterError, Node, Occupied, Request
from cluster.slurm import SlurmCluster, open_cluster, open_queue
from launcher.ownership import refuse_beside
from tests.contracts.cluster import OTHER, OWNER, ClusterContract, Starter, lives
from tests.testbed import slurm as testbed
from tests.testbed.runs import wait_for

NODES = 3


@pytest.fixture(scope="module")
def slurm() -> Iterator[testbed.SlurmCluster]:
    yield from testbed.running(NODES)


@pytest.fixture(autouse=True)
def clients(slurm: testbed.SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Slurm's programs find the cluster."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="class")
def job(slurm: testbed.SlurmCluster) -> Iterator[str]:
    with slurm.allocation(NODES) as number:
        yield number


class TestSlurmCluster(ClusterContract):
    @pytest.fixture
    def cluster(self, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", f"8(x{NODES})")
        return open_cluster({}, Path("/"), tmp_path / "work")

    def test_node_where_another_run_of_the_name_is_at_work_is_refused(
        self, cluster: SlurmCluster, node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str
    ) -> None:
        """What runs on a node cannot be seen from another: Slurm knows whether the other run's job lives."""
        cluster.claim(node, OTHER)
        monkeypatch.setenv("SLURM_JOB_ID", "999999")
        later = open_cluster({}, Path("/"), tmp_path / "work")
        with pytest.raises(Occupied, match="a run called run, of file:///other, is at work there"):
            later.claim(node, OWNER)
        queue = open_queue({}, Path("/"), tmp_path / "work")
        with pytest.raises(Occupied, match=f"job {job}: a run called run, of file:///other"):
            refuse_beside(queue, OWNER)
        refuse_beside(queue, OTHER)
        (Path(node.folder) / "owner.json").unlink()
        later.claim(node, OTHER)
        refuse_beside(queue, OWNER)  # there is no such job
        cluster.claim(node, OWNER)

    def test_unsigned_folder_is_that_of_a_run_from_before_they_were_signed(  # nobody can tell what runs there
        self, cluster: SlurmCluster, node: Node, start: Starter
    ) -> None:
        assert start("one").wait(240) == 0
        cluster.claim(node, OWNER)
        assert cluster.read(node, "program.log", 0) == b"one\n"

    def test_more_nodes_than_the_job_has_cannot_be_had(self, cluster: SlurmCluster, job: str) -> None:
        with pytest.raises(ClusterError, match=f"job {job} has {NODES} nodes, not 9; .*unset SLURM_JOB_ID"):
            cluster.nodes("run", 9)

    def test_step_gets_the_gpus_that_slurm_gave_to_its_node(
        self, cluster: SlurmCluster, node: Node, start: Starter
    ) -> None:
        process = start("import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SLURMD_NODENAME'])")
        assert process.wait(240) == 0
        assert cluster.read(node, "program.log", 0).split() == [b"0,1,2,3", node.name.encode()]
        assert [h.cores for h in cluster.hardware([node])] == [8]

    def test_steps_run_beside_each_other_on_one_node(self, start: Starter) -> None:
        first, second = (start("import signal; signal.pause()") for _ in range(2))
        assert (first.poll(), second.poll()) == (None, None)

    def test_kill_takes_all_of_a_step_and_nothing_else(
        self, cluster: SlurmCluster, node: Node, start: Starter, slurm: testbed.SlurmCluster, job: str
    ) -> None:
        program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import signal; signal.pause()'])"
        doomed, other = start(program), start("import signal; signal.pause()")
        children = Path(f"/proc/{doomed.pid}/task/{doomed.pid}/children")
        child = wait_for(lambda: children.read_text().split(), "the program has a child", 240)[0]
        doomed.kill()
        assert doomed.poll() == -signal.SIGKILL
        wait_for(lambda: not lives(int(child)), "the child is gone", 240)
        assert other.poll() is None
        wait_for(lambda: len(slurm.steps(job)) == 1, "the step is gone", 240)

    def test_step_that_somebody_else_cancels_is_seen_to_end(
        self, start: Starter, slurm: testbed.SlurmCluster, job: str
    ) -> None:
        process = start("import signal; signal.pause()")
        [step] = wait_for(lambda: len(found := slurm.steps(job)) == 1 and found, "the steps before are gone", 240)
        slurm.call("scancel", step.split()[0], check=False)
        assert wait_for(lambda: process.poll(), "the step ends", 240) in (-signal.SIGTERM, -signal.SIGKILL)

    def test_folder_that_is_not_shared_is_told(self, cluster: SlurmCluster, node: Node, tmp_path: Path) -> None:
        hidden = node._replace(project=str(tmp_path / "only-here"))
        with pytest.raises(ClusterError, match=f"on {node.name}: cannot enter .*only-here"):
            Starter(cluster, hidden)("pass")


def test_outside_of_a_job_there_are_no_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ClusterError, match="job 0 has no nodes|Invalid job id"):
        open_cluster({}, Path("/"), tmp_path).nodes("run", 1)


def test_job_is_queued_looked_at_and_cancelled(tmp_path: Path, slurm: testbed.SlurmCluster) -> None:
    settings = {"extra": ["--begin=now+1hour"], "work": str(tmp_path / "shared")}
    queue = open_queue(settings, Path("/"), tmp_path)
    job = queue.submit(Request("run", 2, 1, ("-c", "pass")))
    state = queue.look(job)
    assert state is not None
    assert state.waits
    assert state.text.startswith("PENDING")
    queue.cancel(job)
    assert wait_for(lambda: queue.look(job) is None, "the job is over", 240)
    assert queue.look("999999") is None
    queue.cancel(job)


def test_option_that_slurm_refuses_is_told(tmp_path: Path) -> None:
    queue = open_queue({"partition": "none-such"}, Path("/"), tmp_path)
    with pytest.raises(ClusterError, match="sbatch: .*Invalid partition"):
        queue.submit(Request("run", 1, 1, ("-c", "pass")))


def test_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no sbatch here"):
        open_queue({}, Path("/"), tmp_path).submit(Request("run", 1, 1, ("-c", "pass")))


_ASKS_ONCE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cluster.slurm import open_queue
mark, job = Path(sys.argv[2]), os.environ['SLURM_JOB_ID']
if mark.exists():
    (mark.parent / 'second.new').write_text(job)
    (mark.parent / 'second.new').rename(mark.parent / 'second')
else:
    mark.touch()
    open_queue({'at_limit': sys.argv[3]}, Path('/'), mark.parent).again(job, [])
"""


@pytest.mark.parametrize(("at_limit", "same"), [("requeue", True), ("submit", False)])
def test_job_asks_for_another_allocation(
    tmp_path: Path, slurm: testbed.SlurmCluster, at_limit: str, same: bool
) -> None:
    """The job's program asks the first time that it runs, and the second time ends."""
    queue = open_queue({"at_limit": at_limit, "gres": ""}, Path("/"), tmp_path)
    root = str(Path(testbed.__file__).parents[2])
    job = queue.submit(Request("run", 1, 1, ("-c", _ASKS_ONCE, root, str(tmp_path / "mark"), at_limit)))
    wait_for((tmp_path / "mark").exists, "the first job runs", 240)
    if same:
        slurm.hurry(job)
    wait_for((tmp_path / "second").exists, "the second job runs", 240)
    successor = (tmp_path / "second").read_text()
    assert (successor == job) is same
    wait_for(lambda: not slurm.state(successor), "it ends", 240)

"""What is said to Slurm, and what its answers mean."""

from __future__ import annotations

import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, Command, Node, Request
from cluster import _slurm_words as words
from cluster.slurm import SlurmCluster, SlurmQueue
from fgtrain.listener import listen_at
from tests.testbed.addresses import BOTH
from tests.testbed.ports import told_apart

REQUEST = Request("birds", 2, 4, ("-m", "launcher.job", "file:///shared/my store", "birds"))
NODE = Node("n1", "10.0.0.1", "/shared/work/birds/n1", "/venv/bin/python", "/shared/project")


def script(**settings: Any) -> list[str]:
    found = words.read_settings(settings)
    return words.job_script(found, REQUEST, Path("/shared/pro ject"), Path("/shared/work"), "/venv/python").splitlines()


def test_script_asks_for_what_the_settings_say() -> None:
    lines = script(
        account="vision",
        partition="gpu",
        qos="normal",
        time="08:00:00",
        constraint="a100|h100",
        exclude="bad[1-3]",
        mem="64G",
        cpus=16,
        gres="gpu:a100",
        extra=["--exclusive", "--comment=two words"],
        setup=["module load cuda"],
        lead_s=90,
    )
    assert lines[0] == "#!/bin/bash"
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert options == {
        "--job-name=birds",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--account=vision",
        "--partition=gpu",
        "--qos=normal",
        "--time=08:00:00",
        "--constraint='a100|h100'",
        "--exclude='bad[1-3]'",
        "--mem=64G",
        "--cpus-per-task=16",
        "--gres=gpu:a100:4",
        "--requeue",
        "--signal=B:USR1@90",
        "--open-mode=append",
        "--output=/shared/work/birds/slurm-%j.log",
        "--chdir='/shared/pro ject'",
        "--exclusive",
        "--comment='two words'",
    }
    assert lines[-2:] == ["module load cuda", "exec /venv/python -m launcher.job 'file:///shared/my store' birds"]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, ["--gres=gpu:4"]),
        ({"gres": ""}, []),
        ({"gpus_per_node": ""}, ["--gpus-per-node=4"]),
        ({"gpus_per_node": "a100"}, ["--gpus-per-node=a100:4"]),
    ],
)
def test_gpus_are_asked_for_the_way_the_site_wants(settings: dict[str, Any], asked: list[str]) -> None:
    assert [x[8:] for x in script(**settings) if "--g" in x] == asked


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, ""),
        ({"exclude": "bad[1-3]"}, "bad[1-3]"),
        ({"extra": ["--exclusive", "--exclude=worse"]}, "worse"),
        ({"exclude": "bad[1-3]", "extra": ["-x worse"]}, "worse"),
        ({"exclude": "bad[1-3]", "extra": ["--exclude worse"]}, "worse"),
        ({"exclude": "/shared/bad nodes"}, "/shared/bad nodes"),
    ],
)
def test_nodes_that_are_kept_off_are_told_once(settings: dict[str, Any], own: str) -> None:
    found = words.read_settings(settings)
    assert words.own_exclude(found) == own
    found = words.keeping_off(found, words.merged(own, ["n7", "n8"]))
    lines = words.job_script(found, REQUEST, Path("/"), Path("/"), "python").splitlines()
    [line] = [x for x in lines if "exclude" in x or " -x" in x]
    assert shlex.split(line) == ["#SBATCH", f"--exclude={own}{',' * bool(own)}n7,n8"]
    assert ("#SBATCH --exclusive" in lines) == ("--exclusive" in settings.get("extra", ()))


def test_deaf_program_does_not_hear_that_its_job_ends() -> None:
    argv = words.deaf_argv(["/bin/sh", "-c", 'kill -TERM $$; echo "$1"', "sh", "two words"])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.returncode) == ("two words\n", 0)


def test_file_of_excluded_nodes_is_read() -> None:
    assert words.parse_node_file("# broken\nbad1\n\n bad[2-3]  # fans\n") == "bad1,bad[2-3]"
    assert words.parse_node_file("") == ""


def test_job_that_must_not_be_requeued_says_so() -> None:
    assert "#SBATCH --no-requeue" in script(requeue=False, at_limit="submit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acount": "x"}, "unknown field `acount`; it may have: account, partition"),
        ({"lead_s": "60"}, "Expected `int`, got `str`"),
        ({"lead_s": 0}, "lead_s = 0: from 1 to 65535"),
        ({"at_limit": "sleep"}, "Invalid enum value 'sleep'"),
        ({"work": "shared/work"}, "work = 'shared/work': a folder from / or ~/ on is needed, without variables"),
        ({"work": "/scratch/$USER"}, "work = '/scratch/$USER': a folder"),
        ({"work": "~no-such-user/x"}, "work = '~no-such-user/x': a folder"),
        ({"requeue": False}, 'at_limit = "requeue" needs requeue = true'),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        words.read_settings(settings)
    assert message in str(caught.value)


def test_work_may_be_named_from_home_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert words.read_settings({"work": "~/shared/work"}).work == "/home/me/shared/work"
    assert words.read_settings({"work": "/shared/work"}).work == "/shared/work"
    assert words.read_settings({}).work is None


def job(state: str, **fields: str) -> str:
    told = {"JobId": "17", "JobName": "a=b c", "JobState": state, "Reason": "None", "Restarts": "0"} | fields
    return " ".join(f"{name}={value}" for name, value in told.items()) + "\n"


def test_job_waits_runs_and_is_over() -> None:
    waiting = words.parse_job(job("PENDING", Reason="Resources"))
    assert waiting == (True, "PENDING (Resources)", 0, False, False)
    assert words.parse_job(job("RUNNING", PreemptTime="None")) == (False, "RUNNING", 0, False, False)
    for state in ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"):
        assert words.parse_job(job(state)) is None


def test_job_that_is_preempted_is_told_to_leave() -> None:
    state = words.parse_job(job("RUNNING", PreemptTime="2026-11-21T23:06:30"))
    assert state is not None
    assert state.leaving
    assert not state.waits


def test_job_that_was_put_back_knows_it_by_its_restarts() -> None:
    """In both cases Slurm calls the state COMPLETING as long as the nodes are not free."""
    back = words.parse_job(job("COMPLETING", Restarts="2"), now_starts=1)
    assert back is not None
    assert (back.waits, back.leaving, back.called_off) == (True, True, False)
    cancelled = words.parse_job(job("COMPLETING", Restarts="1"), now_starts=1)
    assert cancelled is not None
    assert (cancelled.waits, cancelled.leaving, cancelled.called_off) == (False, False, True)


def test_job_whose_time_is_over_was_not_called_off() -> None:
    late = words.parse_job(job("COMPLETING", Reason="TimeLimit"), now_starts=0)
    assert late is not None
    assert not late.called_off


def test_nodes_are_read_with_their_addresses() -> None:
    output = (
        "NodeName=gpu7 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=gpu7 Version=22.05\n"
        "NodeName=gpu8 Arch=x86_64 NodeAddr=gpu8.local NodeHostName=gpu8\n"
    )
    assert list(words.parse_nodes(output).items()) == [("gpu7", "10.0.0.7"), ("gpu8", "gpu8.local")]


def test_cpus_of_each_node_are_read() -> None:
    assert words.parse_cpus("8(x2),4") == [8, 8, 4]
    assert words.parse_cpus("16") == [16]
    assert words.parse_cpus("") == []


def test_exit_status_is_told_from_a_signal() -> None:
    assert [words.exit_status(code) for code in (0, 7, 75, 137, 143)] == [0, 7, 75, -9, -15]


def test_step_runs_beside_others_on_its_node() -> None:
    argv = words.step_argv("17", NODE, Command("agent", ("python", "-c", "pass"), {}), ["--mpi=none"])
    assert argv[0] == "srun"
    assert {"--jobid=17", "--nodelist=n1", "--nodes=1", "--ntasks=1", "--overlap", "--mpi=none"} <= set(argv)
    assert argv[-5:] == ("/shared/project", "/shared/work/birds/n1/agent.log", "python", "-c", "pass")


class TestStepScript:
    """The shell between srun and the program, without srun."""

    def run(self, tmp_path: Path, *program: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        node = NODE._replace(folder=str(tmp_path), project=str(tmp_path))
        argv = words.step_argv("17", node, Command("program", program, {}))
        shell = argv[argv.index("/bin/sh") :]
        env = {"SLURM_STEP_ID": "3", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=240, check=False)
        return done, tmp_path / "program.log"

    def test_program_is_announced_and_its_output_logged(self, tmp_path: Path) -> None:
        done, log = self.run(tmp_path, "/bin/sh", "-c", "echo $$ $PWD; echo bad >&2; exit 5")
        announced, pid, step = done.stdout.split()
        assert (announced, step, done.stderr, done.returncode) == ("started", "3", "", 5)
        assert log.read_text() == f"{pid} {tmp_path}\nbad\n"

    def test_program_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        done, _ = self.run(tmp_path, "/no/such/program")
        assert (done.stdout, done.returncode) == ("error no program /no/such/program\n", 127)

    def test_folder_that_the_node_does_not_see_is_told(self, tmp_path: Path) -> None:
        done, _ = self.run(tmp_path / "elsewhere", "true")
        assert done.stdout == f"error cannot enter {tmp_path}/elsewhere\n"


@pytest.mark.parametrize("address", BOTH)
def test_ports_are_told_at_either_kind_of_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")  # no step is needed to ask the node that one is on
    cluster = SlurmCluster(words.Settings(), "1", tmp_path, tmp_path)
    node = NODE._replace(address=address)
    in_use = partial(cluster.port_in_use, node)
    assert told_apart(lambda: cluster.free_port(node), in_use, partial(listen_at, address))


def test_job_is_not_queued_from_a_machine_without_the_project(tmp_path: Path) -> None:
    queue = SlurmQueue(words.Settings(), tmp_path / "gone", tmp_path / "work")
    with pytest.raises(ClusterError, match="/gone, where the run was begun, is not on this machine: put a copy"):
        queue.submit(REQUEST)
    assert not (tmp_path / "work").exists()

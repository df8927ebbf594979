"""How a pod's end reaches the agents in it: the hook that SkyPilot is given, run among real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import _sky_pods
from cluster import _sky_task as words
from cluster._ssh_settings import parse_settings as parse_ssh
from fgtrain.notice import NoticeRecord
from fgtrain.notices import kubernetes
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from tests.testbed.runs import ROOT

AGENT = """
import sys, threading
from pathlib import Path
from fgtrain.departure import Departure, attended, node_name
store, run, folder = sys.argv[-3:]
departure = Departure(Path(folder), node_name(folder))
with attended(store, run, folder, node_name(folder)):
    print("ready", flush=True)
    while not departure.flag.leaves:  # what its ranks do between steps
        threading.Event().wait(0.1)
sys.exit(75)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pods run Linux")


def hook(file: Path, grace_s: int = 600) -> list[str]:
    return ["/bin/sh", "-c", _sky_pods.hook(str(file), grace_s)]


@contextlib.contextmanager
def agent(folder: Path, watches: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start what looks and behaves like an agent, deep below others as in a pod, and no child of the hook's."""
    env = {k: v for k, v in os.environ.items() if k != "FGLAUNCH_NOTICES"} | {_sky_pods.VARIABLE: str(watches)}
    (folder / "node0" / "logs").mkdir(parents=True)
    args = ("-m", "fgtrain.agent", str(folder / "store"), "r", str(folder / "node0"))
    argv = ["sh", "-c", '"$@"; exit $?', "keeper", sys.executable, "-c", AGENT, *args]
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, start_new_session=True) as keeper:
        assert keeper.stdout
        assert keeper.stdout.readline() == b"ready\n"
        try:
            yield keeper
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)


def test_hook_has_the_agents_leave_and_waits_until_they_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "ends"
    with agent(tmp_path, watches=file) as one:
        done = subprocess.run(hook(file), env={}, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert one.wait(240) == 75  # it was gone, or its parent about to know
    [record] = RunStore(open_store(str(tmp_path / "store")), "r").read_all("notices", NoticeRecord)
    assert (record.notice.source, record.notice.what) == ("kubernetes", "the pod is to go")


def test_hook_waits_no_longer_than_the_grace(tmp_path: Path) -> None:
    with agent(tmp_path, watches=tmp_path / "ends") as one:
        os.killpg(one.pid, signal.SIGSTOP)  # it hears nothing
        assert subprocess.run(hook(tmp_path / "ends", grace_s=7), env={}, timeout=240).returncode == 0
        assert one.poll() is None


def test_hook_is_harmless_where_nothing_runs_or_others_do(tmp_path: Path) -> None:
    with agent(tmp_path, watches=tmp_path / "other") as one:
        assert subprocess.run(hook(tmp_path / "ends"), env={}, timeout=240).returncode == 0
        assert one.poll() is None
    assert (tmp_path / "ends").exists()
    nowhere = subprocess.run(hook(tmp_path / "no" / "folder"), env={}, capture_output=True, timeout=240)
    assert nowhere.returncode == 0


@pytest.mark.parametrize(
    ("resources", "pods"),
    [
        ({"infra": "k8s"}, True),
        ({"infra": "kubernetes/context"}, True),
        ({"infra": "ssh/pool"}, True),
        ({"cloud": "kubernetes"}, True),
        ({"accelerators": "A100:8"}, True),
        ({"infra": "aws"}, False),
        ({"infra": "slurm/lab"}, False),
        ({"any_of": [{"infra": "aws"}, {"infra": "k8s"}]}, True),
        ({"any_of": [{"infra": "aws"}, {"accelerators": "A100"}]}, True),
        ({"infra": "aws", "any_of": [{"use_spot": True}, {"use_spot": False}]}, False),
        ({"ordered": [{"infra": "aws"}, {"infra": "gcp"}]}, False),
    ],
)
def test_only_tasks_that_may_become_pods_are_told_of_them(resources: dict[str, Any], pods: bool) -> None:
    settings = words.parse_settings({"resources": resources, "pod_grace_s": 90})
    for task in (
        words.task(settings, "fgl-a", 1, "", "k"),
        words.managed_task(settings, "fgl-a", ["python3"], {}, "/p"),
    ):
        assert ("config" in task) is pods
        if pods:
            assert task["config"]["kubernetes"]["pod_config"]["spec"]["terminationGracePeriodSeconds"] == 90
    assert (task["envs"] == {_sky_pods.VARIABLE: _sky_pods.FILE}) is pods


def test_both_sides_mean_the_same_file() -> None:
    assert (kubernetes.VARIABLE, str(kubernetes.FILE)) == (_sky_pods.VARIABLE, _sky_pods.FILE)


def test_file_of_the_pod_that_launches_is_not_that_of_the_pods_that_train() -> None:
    assert parse_ssh({"hosts": ["a"]}).passed({_sky_pods.VARIABLE: "/x"}) == {}

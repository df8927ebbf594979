"""Managed jobs: what SkyPilot is told. No job runs here; SkyPilot itself reads the task in test_sky_skypilot.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, JobState, Queue, Request, open_cluster, open_queue
from cluster._sky_queue import JOB
from cluster.local import LocalCluster
from tests.testbed.sky import fake_driver

REQUEST = Request("My run", 1, 8, ("-m", "launcher.job", "s3://bucket/x y", "My run"))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    program = tmp_path / "python"
    (tmp_path / "sky").mkdir()
    program.write_text(f'#!/bin/sh\nexec python3 "{fake_driver.__file__}" "{tmp_path}/sky"\n')
    program.chmod(0o755)
    yield {"skypilot": str(program), "resources": {"infra": "aws"}, "setup": "pip install x", "managed": True}


def queue(settings: dict[str, Any], tmp_path: Path) -> Queue:
    found = open_queue("sky", settings, tmp_path, tmp_path / "work")
    assert found is not None
    return found


def test_only_who_asks_for_managed_jobs_has_a_queue(settings: dict[str, Any], tmp_path: Path) -> None:
    assert open_queue("sky", {**settings, "managed": False}, tmp_path, tmp_path) is None


def test_job_is_handed_over_looked_at_and_called_off(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    jobs = queue(settings, tmp_path)
    number = jobs.submit(REQUEST)
    assert number == "7"
    told = json.loads((tmp_path / "sky" / "job-7").read_text())
    assert told == json.loads(jobs.script(REQUEST))
    assert told["run"] == "exec python3 -m launcher.job 's3://bucket/x y' 'My run'\n"
    assert told["workdir"] == str(tmp_path)
    assert told["envs"]["AWS_REGION"] == "us-east-1"
    assert told["setup"] == "pip install x"
    assert jobs.look(number) == JobState(waits=True, text="RECOVERING", starts=2, leaving=False)
    jobs.cancel(number)
    assert jobs.look(number) is None
    assert jobs.again(number, []) == jobs.move(number, ["node1"]) == ""


def test_more_than_one_machine_is_refused_in_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="^--nodes 2: with managed = true a run has one machine"):
        queue(settings, tmp_path).submit(REQUEST._replace(nodes=2))


def test_project_that_is_not_here_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    found = open_queue("sky", settings, tmp_path / "gone", tmp_path / "work")
    assert found is not None
    with pytest.raises(ClusterError, match="/gone, where the run was begun, is not on this machine: put a copy"):
        found.submit(REQUEST)


def test_inside_a_job_the_machine_is_the_cluster_and_skypilot_is_not_asked(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB, "7")
    monkeypatch.chdir(tmp_path)
    here = {**settings, "skypilot": "/no/such/python"}
    cluster = open_cluster("sky", here, Path("/elsewhere"), tmp_path / "work")
    assert isinstance(cluster, LocalCluster)
    assert cluster.nodes("run", 1)[0].project == str(tmp_path)
    jobs = queue(here, tmp_path)
    assert jobs.own == "7"
    assert jobs.look("7") == JobState(waits=False, text="RUNNING", starts=0, leaving=False)

"""Exclusion lasts: in the run's store and for the user's later runs, until it is lifted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import ClusterError
from fgtrain.runstore import RunStore
from fgtrain.stores import open_store
from launcher import exclusions
from launcher.cli import main
from tests.fgtrain.test_runstore import run_file
from tests.testbed.fake_training import FakeClock, FakeCluster


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(tmp_path / "clusters.toml"))
    return tmp_path


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    runs = RunStore(open_store(str(tmp_path / "store")), "run")
    runs.create("run.json", run_file())
    return runs


def exclude(runs: RunStore, host: str, cluster_name: str = "lab") -> FakeCluster:
    cluster = FakeCluster(FakeClock(), 4)
    [node] = [n for n in cluster.nodes("run", 4) if n.name == host]
    exclusions.exclude(runs, cluster_name, cluster, node, "ECC")
    return cluster


def test_excluded_nodes_are_passed_over_in_every_run(runs: RunStore) -> None:
    cluster = exclude(runs, "host1")
    other = RunStore(runs.store, "other")
    names = exclusions.excluded_names(other, "lab")
    assert [n.name for n in exclusions.pick(cluster, "other", 2, names)] == ["host0", "host2"]
    assert [n.name for n in exclusions.pick(cluster, "other", 3, names)] == ["host0", "host2", "host3"]
    with pytest.raises(ClusterError, match="1 nodes are excluded, and 4 others cannot be had: .*--lift NODE"):
        exclusions.pick(cluster, "other", 4, names)


def test_node_of_another_cluster_with_this_name_is_used(runs: RunStore) -> None:
    exclude(runs, "host1")
    assert exclusions.excluded_names(RunStore(runs.store, "other"), "cloud") == set()


def test_run_remembers_on_another_machine(runs: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exclude(runs, "host1")
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "elsewhere" / "work"))
    assert list(exclusions.of_user()) == []
    assert exclusions.excluded_names(runs, "lab") == {"host1"}


def test_command_lists_and_lifts(runs: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exclude(runs, "host1")
    store = ["--store", str(tmp_path / "store")]
    assert main(["nodes", "--json", *store]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["node"], row["cluster"], row["reason"], row["run"]) == ("host1", "lab", "ECC", "run")
    assert main(["nodes", *store]) == 0
    assert "host1" in capsys.readouterr().out
    assert main(["nodes", "--lift", "host1", "--run", "run", *store]) == 0
    assert capsys.readouterr().err.count("host1 of lab is used again") == 2
    assert exclusions.excluded_names(runs, "lab") == set()
    assert main(["nodes", "--lift", "host1", *store]) == 2
    assert "--lift host1: no such node is excluded" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["{home}/shared/work", "~/shared/work"])
def test_command_sees_what_a_job_has_found_in_the_folder_of_its_cluster(
    runs: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    here, shared = str(tmp_path / "work"), tmp_path / "shared" / "work"
    (tmp_path / "clusters.toml").write_text(f'[lab]\nkind = "slurm"\nwork = "{named.format(home=tmp_path)}"\n')
    monkeypatch.setenv("FGLAUNCH_WORK", str(shared))  # as the job's script says
    exclude(runs, "host1")
    monkeypatch.setenv("FGLAUNCH_WORK", here)
    assert exclusions.excluded_names(RunStore(runs.store, "other"), "lab") == {"host1"}
    assert main(["nodes", "--json"]) == 0
    assert [row["node"] for row in json.loads(capsys.readouterr().out)] == ["host1"]
    assert main(["nodes", "--lift", "host1"]) == 0
    assert not list(shared.rglob("*.json"))


def test_exclusion_of_an_earlier_version_holds_and_can_be_lifted(runs: RunStore, work: Path) -> None:
    exclude(runs, "host1")
    exclusions.state_folder().rename(work / "excluded")  # beside the working folders
    assert [e.node for e in exclusions.of_user()] == ["host1"]
    assert len(exclusions.lift_for_user("host1", None)) == 1
    assert list(exclusions.of_user()) == []


def test_list_that_cannot_be_written_is_no_reason_to_end_a_run(runs: RunStore, work: Path) -> None:
    (work / "work").write_text("in the way")
    exclude(runs, "host1")
    assert exclusions.excluded_names(runs, "lab") == {"host1"}


def test_names_that_are_no_file_names_are_kept_apart(runs: RunStore) -> None:
    cluster = FakeCluster(FakeClock(), 0)
    cluster.hosts = ["a/../b", "b"]
    for node in cluster.nodes("run", 2):
        exclusions.exclude(runs, "my lab/x", cluster, node, "bad")
    assert exclusions.excluded_names(runs, "my lab/x") == {"a/../b", "b"}


def test_damaged_file_of_the_user_hides_nothing_else(runs: RunStore) -> None:
    exclude(runs, "host1")
    (exclusions.state_folder() / "lab" / "host2.json").write_text("{")
    assert [e.node for e in exclusions.of_user()] == ["host1"]


def test_local_nodes_are_only_folders_and_not_excluded_for_other_runs(runs: RunStore) -> None:
    cluster = FakeCluster(FakeClock(), 2, lasting=False)
    cluster.name = "local"
    exclusions.exclude(runs, "local", cluster, cluster.nodes("run", 1)[0], "disk full")
    assert list(exclusions.of_user()) == []

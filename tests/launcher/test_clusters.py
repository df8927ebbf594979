"""`fglaunch clusters`, and what is refused before a run starts on one."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster._ssh_link import close_links
from launcher.cli import main
from tests.testbed.runs import ROOT
from tests.testbed.sshd import Sshd, client_config, skip_without, sshd


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "clusters.toml"
    monkeypatch.setenv("FGLAUNCH_CLUSTERS", str(file))
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    return file


def test_clusters_are_listed_with_the_default(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text('default = "lab"\n[lab]\nkind = "ssh"\nhosts = ["gpu1"]\nenv = {KEY = "secret"}\n')
    assert main(["clusters", "--json"]) == 0
    out = capsys.readouterr().out
    assert "secret" not in out
    assert json.loads(out) == [
        {"cluster": "local", "kind": "local", "default": False, "settings": {}},
        {"cluster": "lab", "kind": "ssh", "default": True, "settings": {"hosts": ["gpu1"], "env": "..."}},
    ]
    assert main(["clusters"]) == 0
    assert "gpu1" in capsys.readouterr().out


def test_check_looks_at_every_machine(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text('[sim]\nkind = "fake"\nnodes = 2\n')
    assert main(["clusters", "--check", "--json"]) == 0
    local, *fake = json.loads(capsys.readouterr().out)
    assert local["cluster"] == "local"
    assert local["cores"] >= 1
    assert local["disk_bytes"] > 0
    assert [(r["cluster"], r["node"], r["problem"]) for r in fake] == [("sim", "fake0", ""), ("sim", "fake1", "")]
    assert main(["clusters", "sim", "--check"]) == 0
    assert "fake1" in capsys.readouterr().out


def test_check_of_what_cannot_be_used_fails_and_says_why(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = f"{'x' * 64}.invalid"  # too long to be a name: no name server is asked, which might not answer
    config.write_text(f'[bad]\nkind = "ssh"\n[off]\nkind = "ssh"\nhosts = ["{host}"]\n')
    assert main(["clusters", "--check", "--json"]) == 1
    problems = {r["cluster"]: r["problem"] for r in json.loads(capsys.readouterr().out)}
    assert problems["local"] == ""
    assert "needs hosts" in problems["bad"]
    assert "there is no host of this name" in problems["off"]


@pytest.fixture
def lab(config: Path) -> Iterator[Sshd]:
    """A host, and [lab] that has it."""
    skip_without()
    with sshd("gpu1") as server:
        options = client_config(server.folder, [server])
        config.write_text(
            f'[lab]\nkind = "ssh"\nhosts = ["gpu1"]\nssh_config = "{options}"\npython = "{sys.executable}"\n'
        )
        yield server
        close_links()


def test_check_logs_in_to_hosts_and_leaves_no_trace(lab: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clusters", "lab", "--check", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["node"], row["address"], row["problem"]) == ("gpu1", "127.0.0.1", "")
    assert row["python"] == platform.python_version()
    assert list(lab.home.iterdir()) == []


def test_dry_run_shows_what_hosts_would_run_and_leaves_no_trace(
    lab: Sshd, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with config.open("a") as file:
        file.write("shared = true\n")
    store = str(config.parent / "store")
    assert main(["recipes/quickstart.py", "--cluster", "lab", "--store", store, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert f"cd {ROOT} &&" in out
    assert f"{lab.home}/.local/state/fglaunch/work/quickstart-" in out
    assert "no GPU on the nodes" in err
    assert list(lab.home.iterdir()) == []


def test_more_nodes_than_hosts_are_refused_in_one_line(
    lab: Sshd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = ["recipes/quickstart.py", "--cluster", "lab", "--nodes", "2", "--store", "s3://bucket", "--dry-run"]
    assert main(words) == 2
    assert capsys.readouterr().err == ("fglaunch: 2 nodes are asked for, and there are 1: see hosts in clusters.toml\n")


def test_unknown_cluster_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clusters", "lab"]) == 2
    assert f"{config} has no [lab]; there are: local" in capsys.readouterr().err


def test_store_that_the_nodes_cannot_see_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from cluster.fake import Clock, FakeCluster
    from fgtrain.errors import UserError
    from fgtrain.stores import open_store
    from launcher.foreground import check_store

    cluster = FakeCluster(Clock(), ["a"], {})
    store = open_store(str(tmp_path / "store"))
    check_store(store, "lab", cluster)
    cluster.shares_files = False
    with pytest.raises(
        UserError, match=r"the nodes of lab do not see this machine's files; .*shared = true under \[lab\]"
    ):
        check_store(store, "lab", cluster)
    assert list(tmp_path.iterdir()) == []

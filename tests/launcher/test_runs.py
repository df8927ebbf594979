"""A finished run and what every command says of it; runs that stop, move to another world and go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.runs import ROOT, Runs, wait_for

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

TINY = (
    *("--set", "loader.workers=0", "--set", "evaluate.micro=512"),
    *("--set", "snapshots.steps=10", "--set", "snapshots.seconds=null", "--set", "snapshots.memory_steps=0"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs(folder, FGLAUNCH_MEMORY=str(folder / "memory"))
    yield runs
    runs.end()


@pytest.fixture(scope="module")
def finished(runs: Runs) -> str:
    """A run of 23 steps on two ranks of one node; what it said."""
    done = runs.call("recipes/quickstart.py", "--gpus", "2", "--name", "done", "--set", "epochs=1", *TINY)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_last_line_says_where_the_results_are(runs: Runs, finished: str) -> None:
    last = finished.splitlines()[-1]
    assert last.startswith("run done finished: ")
    for word in last.split():
        if word.startswith("file://"):
            assert Path(word.removeprefix("file://").rstrip(",")).stat().st_size > 0
    assert "metrics.jsonl" in last
    assert "weights.safetensors" in last


def test_listing_shows_the_run_finished(runs: Runs, finished: str) -> None:
    [row] = [r for r in runs.json("ps") if r["run"] == "done"]
    assert (row["state"], row["step"], row["steps"]) == ("finished", 23, 23)
    assert row["recipe"] == "recipes/quickstart.py"
    assert "done" in runs.call("ps").stdout


def test_snapshots_are_listed_and_verified(runs: Runs, finished: str) -> None:
    rows = runs.json("snapshots", "done")
    assert [r["step"] for r in rows] == [10, 20, 23]
    assert all(r["verified"] and r["attempt"] == 1 and r["world"] == 2 for r in rows)
    assert runs.call("snapshots", "done").stdout.count("yes") == 3


def test_samples_are_every_sample_once_an_epoch(runs: Runs, finished: str) -> None:
    rows = [json.loads(line) for line in runs.samples("done").splitlines()]
    assert {r["step"] for r in rows} == set(range(23))
    first = [s for r in rows for e, s in r["ids"] if e == 0]
    assert sorted(first) == list(range(len(first)))
    plain = runs.call("samples", "done").stdout.splitlines()
    assert len(plain) == len(rows)
    assert plain[0].startswith("step 0 micro 0: 0:")


def test_logs_are_printed_rank_by_rank(runs: Runs, finished: str) -> None:
    done = runs.call("logs", "done", "--attempt", "1")
    assert done.returncode == 0, done.stderr
    unknown = runs.call("logs", "done", "--rank", "7")
    assert unknown.returncode == 2
    assert "rank 7" in unknown.stderr
    assert runs.call("logs", "done", "-f", "--rank", "1").returncode == 0


def test_attach_to_a_finished_run_replays_it(runs: Runs, finished: str) -> None:
    done = runs.call("attach", "done")
    assert done.returncode == 0, done.stderr
    assert "attempt 1: from the start of 23, 2 processes" in done.stderr
    assert "run done finished" in done.stderr.splitlines()[-1]


def test_finished_run_has_nothing_to_stop_or_resume(runs: Runs, finished: str) -> None:
    stopped, resumed = runs.call("stop", "done"), runs.call("resume", "done")
    assert (stopped.returncode, resumed.returncode) == (0, 0)
    assert "it is finished" in stopped.stderr
    assert "run done finished" in resumed.stderr


def test_damaged_snapshot_is_shown_as_such(runs: Runs, finished: str, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(runs.store.removeprefix("file://"), copy)
    [manifest] = (copy / "runs" / "done" / "manifests").glob("*20-*")
    manifest.write_bytes(manifest.read_bytes()[:-1])
    rows = {r["step"]: r for r in runs.json("snapshots", "done", "--store", str(copy))}
    assert [rows[step]["verified"] for step in (10, 20, 23)] == [True, False, True]
    assert "NO: " in runs.call("snapshots", "done", "--store", str(copy)).stdout


def test_mistake_that_only_a_worker_can_find_ends_with_2_and_no_traceback(runs: Runs) -> None:
    done = runs.call("recipes/quickstart.py", "--name", "frozen", "--set", "model.freeze=nothing.*", *TINY)
    assert done.returncode == 2, done.stderr
    assert "model.freeze: 'nothing.*' matches no parameter" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "mine.py"
    file.write_text((ROOT / "recipes" / "quickstart.py").read_text(encoding="utf-8"), encoding="utf-8")
    yield file


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Runs]:
    """Where a run takes minutes, until there is the file `go` beside its store."""
    path = f"{ROOT / 'tests' / 'testbed' / 'slow'}{os.pathsep}{ROOT}"
    runs = Runs(tmp_path, PYTHONPATH=path, FGLAUNCH_TEST_GO=str(tmp_path / "go"))
    yield runs
    runs.end()


def test_detached_run_is_stopped_and_goes_on_elsewhere_as_recorded(slow: Runs, recipe: Path) -> None:
    """One lineage: two ranks in the background, stopped by a command, the recipe changed, three ranks to the end."""
    runs, lean = slow, ("--set", "epochs=4", "--set", "evaluate.every_epochs=0")
    args = ("--detach", "--gpus", "2", "--name", "moved", *lean, *TINY)
    begun = runs.call(str(recipe), *args)
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout == "moved\n"
    assert "fglaunch attach moved" in begun.stderr
    assert runs.call("resume", "moved").returncode == 2  # it is running
    manifests = Path(runs.store.removeprefix("file://")) / "runs" / "moved" / "manifests"
    wait_for(lambda: manifests.is_dir() and any(manifests.iterdir()), "a snapshot")
    # A busy machine may need a second try.
    wait_for(lambda: runs.call("stop", "moved").returncode == 0, "it is stopped")
    [row] = [r for r in runs.json("ps") if r["run"] == "moved"]
    assert row["state"] == "stopped"
    newest = runs.json("snapshots", "moved")[-1]["step"]
    assert 10 <= newest < 90
    (runs.folder / "go").touch()
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("lr=3e-3", "lr=1.0"), encoding="utf-8")
    refused = runs.call("resume", "moved", "--gpus", "1")
    assert refused.returncode == 2
    assert "optim.lr: 0.003, now 1.0" in refused.stderr
    resumed = runs.call("resume", "moved", "--gpus", "3", "--as-recorded", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    watched = runs.call("attach", "moved")
    assert watched.returncode == 0, watched.stderr
    assert f"attempt 2: from step {newest} of 90, 3 processes" in watched.stderr
    assert "run moved finished" in watched.stderr.splitlines()[-1]
    assert [r["step"] for r in map(json.loads, runs.samples("moved").splitlines())][-1] == 89
    assert runs.call("logs", "moved", "--attempt", "2").returncode == 0

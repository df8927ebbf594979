"""Two savers of two attempts: the older one is refused, whatever it has uploaded already."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fgtrain import lease, train, worker
from fgtrain.errors import KeyExists
from fgtrain.place import Place
from fgtrain.pulse import Pulse
from fgtrain.runstore import RunStore
from fgtrain.snapshot.upload import Fenced, Uploader
from fgtrain.stores import open_store
from launcher import prepare
from tests.testbed.s3 import S3Server
from tests.testbed.snapshots import staged_share


@pytest.fixture
def runs() -> RunStore:
    return RunStore(open_store(f"memory://{uuid.uuid4()}"), "r")


def test_older_attempt_is_refused_even_after_its_upload(runs: RunStore, tmp_path: Path) -> None:
    older = runs.take_attempt(0, 1).attempt
    uploader = Uploader(runs, tmp_path / "old", older, 0, None)
    header = staged_share(tmp_path / "old", "r", 5, b"aaaabbbb", attempt=older)
    uploader.store_share(header)
    newer = runs.take_attempt(0, 1).attempt
    with pytest.raises(Fenced, match="attempt 1 of r was replaced"):
        uploader.commit(header)
    assert runs.manifest_names() == []
    other = Uploader(runs, tmp_path / "new", newer, 0, None)
    header = staged_share(tmp_path / "new", "r", 5, b"aaaacccc", attempt=newer)
    other.store_share(header)
    assert other.commit(header).attempt == newer
    assert runs.manifest_names() == ["0000000005-00002"]


def test_one_attempt_commits_a_step_once(runs: RunStore, tmp_path: Path) -> None:
    attempt = runs.take_attempt(0, 1).attempt
    header = staged_share(tmp_path, "r", 5, b"aaaabbbb", attempt=attempt)
    for refused in (False, True):
        uploader = Uploader(runs, tmp_path, attempt, 0, None)
        uploader.store_share(header)
        if refused:
            with pytest.raises(KeyExists):
                uploader.commit(header)
        else:
            uploader.commit(header)


def test_attempts_taken_at_once_are_different(runs: RunStore) -> None:
    taken = [RunStore(runs.store, "r").take_attempt(0, 1).attempt for _ in range(5)]
    assert taken == [1, 2, 3, 4, 5]
    assert runs.attempts() == taken


def test_run_sent_back_fences_all_attempts_so_far(runs: RunStore, tmp_path: Path) -> None:
    attempt = runs.take_attempt(0, 1).attempt
    uploader = Uploader(runs, tmp_path, attempt, 0, None)
    header = staged_share(tmp_path, "r", 5, b"aaaabbbb", attempt=attempt)
    uploader.store_share(header)
    assert runs.fence() == 0
    runs.raise_fence(step=3)
    assert runs.fence() == 2
    with pytest.raises(Fenced):
        uploader.commit(header)


def test_store_that_ignores_conditions_is_announced(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone.env.items():
        monkeypatch.setenv(name, value)
    notes = prepare.try_store(open_store(f"s3://{rclone.bucket}/{uuid.uuid4()}"))
    assert any("ignores conditional writes" in note for note in notes)


def test_ranks_of_a_supervisor_that_was_succeeded_elsewhere_take_no_attempt_and_report_no_failure(
    runs: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in lease.variables(900.0, runs.store.url, "r", 1).items():
        monkeypatch.setenv(name, value)
    alone, progress = Place(0, 1, 0, torch.device("cpu")), SimpleNamespace(attempt=None, rank=0, pulse=Pulse())
    for since, number in ((1, 1), (2, 0)):
        runs.write("status.json", lease.Beat(float(since), "running", since))
        if number:
            assert train._take_attempt(runs, 0, alone).attempt == number
        else:
            with pytest.raises(Fenced, match="goes on under another supervisor"):
                train._take_attempt(runs, 0, alone)
        worker._report(runs, tmp_path, progress, ValueError("no"))  # type: ignore[arg-type]
        assert runs.attempts() == [1]
        assert len(list(runs.store.list(runs.key("errors/")))) == 1

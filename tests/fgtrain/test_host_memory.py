"""Where a node's ranks stage: memory of a run's own, also beside another run of its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgtrain.snapshot.memory import forget, forget_others, memory_folders, rank_folder


@pytest.fixture(params=["memory", "disk"])
def which(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("FGLAUNCH_MEMORY", str(tmp_path / "memory"))
    return ["memory", "disk"].index(request.param)


def stage(tmp_path: Path, identity: str, which: int) -> Path:
    folder = rank_folder(memory_folders("run", tmp_path / "node", identity)[which], 3, 0)
    folder.mkdir(parents=True)
    return folder


def test_runs_of_one_name_have_memory_of_their_own(tmp_path: Path, which: int) -> None:
    first, second = (stage(tmp_path, identity, which) for identity in ("1f", "2e"))
    forget(memory_folders("run", tmp_path / "node", "1f")[which])
    assert not first.exists()
    assert second.exists()
    forget(memory_folders("run", tmp_path / "node", "2e")[which])
    assert not second.parents[1].exists()


def test_what_is_left_of_earlier_runs_of_the_name_is_forgotten(tmp_path: Path, which: int) -> None:
    left, own = (stage(tmp_path, identity, which) for identity in ("1f", "2e"))
    unsigned = rank_folder(own.parents[1], 7, 0)  # as earlier versions had it
    unsigned.mkdir()
    forget_others("run", tmp_path / "node", "2e")
    assert own.exists()
    assert not left.exists()
    assert not unsigned.exists()

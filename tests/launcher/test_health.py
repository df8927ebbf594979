"""doctor: each thing is judged, everything wrong comes with its mending, and only `bad` fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher import health
from launcher.health import GIB, Row
from tests.testbed.runs import Runs
from tests.testbed.s3 import S3Server

FOUND: dict[str, Any] = {
    "torch": "2.13.0",
    "cuda": "12.8",
    "gpus": [{"name": "H200", "bytes": 140 * GIB}],
    "gloo": True,
    "nccl": "2.27",
    "imports": {"timm": {"version": "1.0", "error": None}},
}


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (health.python_row((3, 11, 4)), "ok"),
        (health.python_row((3, 10, 9)), "bad"),
        (health.cores_row(8), "ok"),
        (health.cores_row(1), "warn"),
        (health.memory_row(8 * GIB), "ok"),
        (health.memory_row(2 * GIB), "warn"),
        (health.memory_row(GIB // 2), "bad"),
        (health.shared_memory_row(64 << 20), "warn"),
        (health.shared_memory_row(8 * GIB), "ok"),
        (health.files_row(1024), "ok"),
        (health.files_row(-1), "ok"),
        (health.files_row(512), "warn"),
        (health.files_row(64), "bad"),
        (health.clock_row(1e9, 2e9), "bad"),
        (health.clock_row(2e9, 1e9), "ok"),
    ],
)
def test_row_is_judged_and_trouble_comes_with_its_mending(row: Row, state: str) -> None:
    assert row.state == state
    assert bool(row.fix) == (state != "ok")


def states(found: dict[str, Any] | str | None, devices: list[str]) -> dict[str, str]:
    return {row.name: row.state for row in health.torch_rows(found, devices)}


def test_whole_machine_is_ok() -> None:
    assert set(states(FOUND, ["0"]).values()) == {"ok"}
    text = " ".join(row.found for row in health.torch_rows(FOUND, ["0"]))
    assert "H200 140 GiB" in text
    assert "NCCL 2.27" in text


def test_gpu_that_torch_does_not_see_is_bad() -> None:
    assert states(FOUND | {"gpus": []}, ["0"])["gpus"] == "bad"


def test_machine_without_torch_can_launch() -> None:
    assert states(None, []) == {"torch": "warn"}
    assert next(health.torch_rows(None, [])).fix == "pip install 'fglaunch[train]'"


def test_torch_that_does_not_import_is_bad() -> None:
    assert states("OSError: libcudart.so", []) == {"torch": "bad"}


def test_package_that_does_not_import_is_bad_and_says_why() -> None:
    broken = {"timm": {"version": None, "error": "RuntimeError: operator nms"}}
    row = list(health.torch_rows(FOUND | {"imports": broken}, ["0"]))[-1]
    assert (row.name, row.state, row.found) == ("timm", "bad", "RuntimeError: operator nms")


def test_extra_lacking_a_package_says_what_to_install() -> None:
    needs = ["msgspec>=0.19", "torch>=2.6; extra == 'train'", "timm>=1 ; extra == 'train'", 's3fs>=1; extra == "s3"']
    rows = {r.name: r for r in health.extra_rows(needs, {"torch": "2.13", "s3fs": "2026.9"}.get)}
    assert rows["extra train"][1:] == (
        "warn",
        "not installed: timm; installed: torch 2.13",
        "pip install 'fglaunch[train]'",
    )
    assert rows["extra s3"].state == "ok"


def test_work_folder_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert health.disk_row(tmp_path / "file" / "work").state == "bad"
    assert health.disk_row(tmp_path / "new" / "work").found.endswith(f"free for {tmp_path / 'new' / 'work'}")
    assert not (tmp_path / "new").exists()


def test_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    rows = list(health.store_rows(str(tmp_path / "store")))
    assert [r.state for r in rows] == ["ok", "ok"]
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file()]


def test_store_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    [row] = health.store_rows(str(tmp_path / "file" / "store"))
    assert row.state == "bad"


def test_store_that_ignores_conditions_is_warned_of(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone.env.items():
        monkeypatch.setenv(name, value)
    rows = list(health.store_rows(f"s3://{rclone.bucket}/doctor"))
    assert rows[0].state == "warn"
    assert "never run two supervisors" in rows[0].fix


@pytest.mark.train
def test_doctor_of_this_machine_finds_nothing_bad(tmp_path: Path) -> None:
    rows = {r["name"]: r for r in Runs(tmp_path).json("doctor")}
    assert not [r for r in rows.values() if r["state"] == "bad"]
    assert rows["torch"]["state"] == "ok"
    assert {"python", "extra train", "gpus", "collectives", "timm", "cores", "memory", "work folder"} <= rows.keys()
    assert {"store", "open files", "clock"} <= rows.keys()


def test_something_bad_ends_with_1_and_shows_the_mending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.cli import main

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(health, "_ask_torch", lambda: None)
    monkeypatch.setenv("FGLAUNCH_WORK", str(tmp_path / "work"))
    assert main(["doctor", "--json", "--store", f"{tmp_path}/file/store"]) == 1
    assert main(["doctor", "--json", "--store", f"{tmp_path}/store"]) == 0


def test_doctor_without_a_store_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.cli import main

    monkeypatch.setattr(health, "_ask_torch", lambda: None)
    monkeypatch.delenv("FGLAUNCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    assert "store" not in {r["name"] for r in json.loads(capsys.readouterr().out)}
    assert not list(tmp_path.iterdir())

"""Old copies of the code and old environments on a host: the newest few stay, and whatever a run may still need."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from cluster import _host_processes
from cluster._host_files import assemble, make_environment, missing
from cluster._host_prune import prune
from tests.testbed.runs import wait_for

DAY = 24 * 3600.0
NOW = 1_000_000_000.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Five copies of the code and five environments: the higher the number, the older."""
    cache = tmp_path / "cache"
    for number in range(5):
        assemble(str(cache), f"c{number}", {}, [], b"")
        env = cache / "envs" / f"e{number}"
        env.mkdir(parents=True)
        for file in (env / ".complete", env / "python", cache / "envs" / f"e{number}.lock"):
            file.touch()
        for file in (cache / "code" / f"c{number}.json", env / ".complete"):
            age(file, (number + 2) * DAY)
    return cache


def age(file: Path, seconds: float) -> None:
    os.utime(file, (NOW - seconds, NOW - seconds), follow_symlinks=False)


def run_folder(tmp_path: Path, name: str, days: float, **links: Path) -> str:
    folder = tmp_path / "work" / name / "gpu1"
    folder.mkdir(parents=True)
    for link, target in links.items():
        (folder / link).symlink_to(target)
        age(folder / link, days * DAY)
    return str(folder)


def there(cache: Path) -> set[str]:
    code = {p.name for p in (cache / "code").iterdir() if p.is_dir()}
    assert {p.stem for p in (cache / "code").glob("*.json")} == code
    return code | {p.name for p in (cache / "envs").iterdir() if p.is_dir()}


def test_newest_few_are_kept(tmp_path: Path, cache: Path) -> None:
    removed = prune(str(cache), run_folder(tmp_path, "new", 0), 2, NOW)
    assert sorted(removed) == ["code/c2", "code/c3", "code/c4", "envs/e2", "envs/e3", "envs/e4"]
    assert there(cache) == {"c0", "c1", "e0", "e1"}
    assert prune(str(cache), run_folder(tmp_path, "newer", 0), 2, NOW) == []


def test_all_are_kept_where_the_settings_say_so(tmp_path: Path, cache: Path) -> None:
    assert prune(str(cache), run_folder(tmp_path, "new", 0), 0, NOW) == []
    assert len(there(cache)) == 10


def test_what_a_run_used_within_a_day_is_kept(tmp_path: Path, cache: Path) -> None:
    busy = run_folder(tmp_path, "busy", 0.9, project=cache / "code" / "c4", env=cache / "envs" / "e3")
    idle = run_folder(tmp_path, "idle", 1.1, project=cache / "code" / "c3", env=cache / "envs" / "e4")
    for folder in (busy, idle):
        prune(str(cache), folder, 0, NOW)
    prune(str(cache), busy, 1, NOW)
    assert there(cache) == {"c0", "c4", "e0", "e3"}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_what_a_running_program_was_started_with_is_kept(tmp_path: Path, cache: Path) -> None:
    folder = run_folder(tmp_path, "long", 9, project=cache / "code" / "c4", env=cache / "envs" / "e4")
    script = "import time; time.sleep(600)"
    record = _host_processes.start(folder, "agent", "1", [sys.executable, "-c", script], {}, f"{folder}/project")
    try:
        for file in Path(folder).iterdir():
            age(file, 9 * DAY)
        prune(str(cache), folder, 1, NOW)
        assert there(cache) == {"c0", "c4", "e0", "e4"}
    finally:
        wait_for(lambda: _host_processes.kill(folder, "agent", record)["code"] is not None, "it is known to have ended")
    for file in Path(folder).iterdir():
        age(file, 9 * DAY)
    prune(str(cache), folder, 1, NOW)
    assert there(cache) == {"c0", "e0"}


def test_what_is_asked_for_again_is_new_again(tmp_path: Path, cache: Path) -> None:
    assert missing(str(cache), "c4", {}) == []
    assert make_environment(str(cache), "e4", "", "", [], {}) == 0.0
    prune(str(cache), run_folder(tmp_path, "new", 0), 1, NOW)
    assert there(cache) == {"c4", "e4"}


def test_runs_that_are_gone_are_forgotten(tmp_path: Path, cache: Path) -> None:
    gone = run_folder(tmp_path, "gone", 0, project=cache / "code" / "c4")
    prune(str(cache), gone, 0, NOW)
    shutil.rmtree(gone)
    prune(str(cache), run_folder(tmp_path, "new", 0), 1, NOW)
    assert "c4" not in there(cache)
    assert len(list((cache / "used-by").iterdir())) == 1


def test_nothing_stays_behind_of_what_was_removed(tmp_path: Path, cache: Path) -> None:
    prune(str(cache), run_folder(tmp_path, "new", 0), 1, NOW)
    assert {p.name for p in (cache / "code").iterdir()} == {"c0", "c0.json"}
    assert {p.name for p in (cache / "envs").iterdir() if p.suffix != ".lock"} == {"e0"}

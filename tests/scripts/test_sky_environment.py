"""scripts/install_sky: what it installs, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

from cluster import _sky_task

ROOT = Path(__file__).parents[2]


def call(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = str(ROOT / "scripts" / "install_sky")
    return subprocess.run([program, *argv], env=os.environ | env, capture_output=True, text=True, timeout=240)


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call(str(tmp_path / "file" / "sky"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("install: ")


def test_script_extra_and_backend_mean_the_same_skypilot() -> None:
    script = (ROOT / "scripts" / "sky_environment.py").read_text()
    assert f'VERSION = "{_sky_task.VERSION}"' in script
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["sky"] == [f"skypilot>={_sky_task.VERSION},<0.{int(_sky_task.VERSION.split('.')[1]) + 1}"]

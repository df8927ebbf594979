"""`fglaunch completion bash`, loaded into a real bash, completes commands and options."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.cli import COMMANDS
from tests.testbed.runs import ROOT, Runs

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    done = Runs(folder).call("completion", "bash")
    assert done.returncode == 0, done.stderr
    file = folder / "fglaunch.bash"
    file.write_text(done.stdout, encoding="utf-8")
    return file


def complete(script: Path, *words: str) -> set[str]:
    """What bash proposes for the last of the words of a command line."""
    program = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        function=$(complete -p fglaunch | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function" fglaunch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.split())


def test_script_is_valid(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_command_is_proposed(script: Path) -> None:
    assert complete(script, "fglaunch", "") >= set(COMMANDS)


def test_begun_command_is_completed(script: Path) -> None:
    assert complete(script, "fglaunch", "snap") == {"snapshots"}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("run", "--"), {"--nodes", "--gpus", "--set", "--store", "--name", "--port", "--dry-run", "--detach"}),
        (("logs", "--"), {"--follow", "--rank", "--attempt", "--store"}),
        (("resume", "--"), {"--nodes", "--gpus", "--as-recorded"}),
        (("ps", "--j"), {"--json"}),
        (("completion", "b"), {"bash"}),
        (("data", ""), {"get"}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_options_of_a_command_are_proposed(script: Path, words: tuple[str, ...], options: set[str]) -> None:
    assert complete(script, "fglaunch", *words) >= options


def test_recipe_is_completed_from_files(script: Path) -> None:
    assert "recipes/quickstart.py" in complete(script, "fglaunch", "show", "recipes/quick")

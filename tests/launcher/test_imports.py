"""The launching side stays light: no command that looks or plans imports torch or anything as heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.recipe_file import HEAVY
from tests.testbed.runs import ROOT, Runs

SCRIPT = """
import sys
from launcher.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("heavy:", sorted({m.split(".")[0] for m in sys.modules} & HEAVY), "code:", code)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["show", "recipes/quickstart.py"],
        ["ps"],
        ["ps", "--json"],
        ["completion", "bash"],
        ["recipes/quickstart.py", "--dry-run"],
    ],
    ids=" ".join,
)
def test_command_imports_nothing_heavy(args: Sequence[str], tmp_path: Path) -> None:
    script = SCRIPT.replace("HEAVY", repr(set(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=Runs(tmp_path).env,
    )
    assert done.stdout.splitlines()[-1] == "heavy: [] code: 0"


def test_help_does_not_import_the_commands() -> None:
    script = "import sys\nfrom launcher.cli import parser\nparser().format_help()\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(eval(done.stdout))
    assert "launcher.cli" in loaded
    assert not {m for m in loaded if m.startswith(("launcher.commands", "fgtrain", "msgspec", "rich", "shtab"))}

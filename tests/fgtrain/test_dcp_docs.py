"""What docs/dcp.md shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs/dcp.md"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_example_saves_twice_and_loads_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(DOCS), "exec"), {})
    assert capsys.readouterr().out == "['step-1', 'step-2']\n2\n"

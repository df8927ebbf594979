"""What tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.runs import Runs


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Runs on this machine; modules with another store, or one for all their tests, have their own."""
    runs = Runs(tmp_path)
    yield runs
    runs.end()

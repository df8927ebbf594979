"""What some tests need and not every machine has: they are skipped, and pytest says why."""

from __future__ import annotations

import importlib.util

import pytest

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: scripts/install train deepspeed",
)

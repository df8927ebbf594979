"""What some tests need and not every machine has: they are skipped, and pytest says why."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: scripts/install train deepspeed",
)
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="there is no C++ compiler, which torch.compile needs for kernels of CPUs: install g++, or set CXX",
)

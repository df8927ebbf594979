"""What this machine has, without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cuda_devices() -> list[str]:
    """Return the GPUs that processes here may use, as CUDA_VISIBLE_DEVICES would name them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d.strip() not in ("", "-1")]
    count = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in Path("/dev").glob("nvidia*"))
    return [str(i) for i in range(count)]


def cpu_count() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

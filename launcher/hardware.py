"""What this machine has, without importing torch."""

from __future__ import annotations

from cluster._machine import cpu_count, cuda_devices

__all__ = ["cpu_count", "cuda_devices"]

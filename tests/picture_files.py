"""Pictures on disk for tests: made here, or the real ones of a checkout's neighbour."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def real_data(name: str) -> Path:
    """Return a folder of real data, or skip: $FGLAUNCH_TEST_DATA, else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FGLAUNCH_TEST_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set FGLAUNCH_TEST_DATA)")
    return folder


def gradient(height: int = 24, width: int = 32) -> Image.Image:
    """Make an RGB picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (255 * y // (height - 1), 255 * x // (width - 1), np.full_like(x, 40))
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Encode a picture."""
    out = BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def write_picture(path: Path, format_: str = "JPEG") -> Path:
    """Write a small picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(gradient(), format_))
    return path

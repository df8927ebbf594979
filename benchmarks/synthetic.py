"""Pictures made on the fly, as an ImageFolder: enough detail that a JPEG of them costs what a photograph's does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10


def write_folder(root: Path, *, train: int, side: int, seed: int = 0) -> None:
    """Write `train` pictures of `side` x `side` pixels into train/<class>/, and a few into val/<class>/."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", CLASSES)):
        for number in range(count):
            folder = root / split / f"class-{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            picture(draw, number % CLASSES, side).save(folder / f"{number:06d}.jpg", quality=90)


def picture(draw: np.random.Generator, label: int, side: int) -> Image.Image:
    """Draw soft blobs of random colour with some grain; the class is a tint."""
    coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + draw.integers(-12, 13, (side, side, 3), dtype=np.int16)
    pixels[..., label % 3] += 8 * label
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

"""Keyed augmentation: what a picture looks like is a function of (seed, epoch, sample) alone."""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
from PIL import Image

from fgtrain.data import Images
from fgtrain.keyed import key

Box = tuple[float, float, float, float]


def training_crop(data: Images, width: int, height: int, draw: random.Random) -> Box:
    """Return the part (left, top, right, bottom) of a `width` x `height` picture that becomes the training crop."""
    if data.scale is not None:
        return _random_area(data.scale, width, height, draw)
    side = min(width, height) * min(1.0, data.crop / data.resize)
    left, top = draw.uniform(0, width - side), draw.uniform(0, height - side)
    return left, top, left + side, top + side


def _random_area(scale: tuple[float, float], width: int, height: int, draw: random.Random) -> Box:
    """Return a box of random area and aspect. Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015."""
    for _ in range(10):
        area = width * height * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    return centre_crop(1.0, width, height)


def centre_crop(share: float, width: int, height: int) -> Box:
    """Return the central square whose side is `share` of the short side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def augment(pixels: npt.NDArray[np.uint8], data: Images, seed: int, epoch: int, sample: int) -> npt.NDArray[np.uint8]:
    """Crop, resize and flip a training picture, drawn by its key: (H, W, 3) to (crop, crop, 3)."""
    return random_cut(pixels, data, random.Random(key("augment", seed, epoch, sample)))


def random_cut(pixels: npt.NDArray[np.uint8], data: Images, draw: random.Random) -> npt.NDArray[np.uint8]:
    """Crop, resize and flip a training picture: (H, W, 3) to (crop, crop, 3)."""
    height, width = pixels.shape[:2]
    cut = _resize(pixels, training_crop(data, width, height, draw), data.crop)
    if data.flip and draw.random() < 0.5:
        cut = np.ascontiguousarray(cut[:, ::-1])
    return cut


def centre(pixels: npt.NDArray[np.uint8], data: Images) -> npt.NDArray[np.uint8]:
    """Crop and resize an evaluation picture: (H, W, 3) to (crop, crop, 3)."""
    height, width = pixels.shape[:2]
    return _resize(pixels, centre_crop(min(1.0, data.crop / data.resize), width, height), data.crop)


def _resize(pixels: npt.NDArray[np.uint8], box: Box, side: int) -> npt.NDArray[np.uint8]:
    """Cut `box` out and scale it to `side` x `side` in one pass (antialiased bilinear)."""
    picture = Image.fromarray(pixels)
    left, top, right, bottom = box
    inside = (max(0.0, left), max(0.0, top), min(right, picture.width), min(bottom, picture.height))
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=inside))

"""Keyed augmentation: what a picture looks like is a function of (seed, epoch, sample) alone.

Pictures come prepared (`fgtrain.preparation`). A `Cut` says what is taken of one, in whole pixels, and
`cut_into` takes it, straight into a micro-batch's memory.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fgtrain.data import Images
from fgtrain.decoding import resized, to_tensor
from fgtrain.keyed import key

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Cut(NamedTuple):
    """A part of a picture (left, top, right, bottom), mirrored or not."""

    box: Box
    flip: bool = False


def augmented(data: Images, width: int, height: int, seed: int, epoch: int, sample: int) -> Cut:
    """Draw what training sees of a prepared picture in an epoch, by its key."""
    return random_cut(data, width, height, random.Random(key("augment", seed, epoch, sample)))


def random_cut(data: Images, width: int, height: int, draw: random.Random) -> Cut:
    """Draw what training sees of a prepared picture of `width` x `height`."""
    box = _random_area(data.scale, width, height, draw) if data.scale else _random_place(data.crop, width, height, draw)
    return Cut(box, data.flip and draw.random() < 0.5)


def centre(data: Images, width: int, height: int) -> Cut:
    """Return what evaluation sees of a prepared picture: the central square."""
    return Cut(_central(data.crop, width, height))


def cut_into(out: torch.Tensor, pixels: Pixels, cut: Cut) -> None:
    """Copy a cut of a picture (H, W, 3) to `out`, uint8 (crop, crop, 3), scaled if their sizes differ."""
    left, top, right, bottom = cut.box
    part = resized(pixels[top:bottom, left:right], (out.shape[1], out.shape[0]))
    if cut.flip:
        out.copy_(to_tensor(part).flip(1))
    else:
        out.numpy()[:] = part


def _random_place(side: int, width: int, height: int, draw: random.Random) -> Box:
    """Place a square of `side` pixels at random; a smaller picture is taken whole, as a square."""
    side = min(side, width, height)
    left, top = _whole(draw, width - side), _whole(draw, height - side)
    return left, top, left + side, top + side


def _random_area(scale: tuple[float, float], width: int, height: int, draw: random.Random) -> Box:
    """Return a box of random area and aspect. Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015."""
    for _ in range(10):
        area = width * height * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = _whole(draw, width - w), _whole(draw, height - h)
            return left, top, left + w, top + h
    return _central(min(width, height), width, height)


def _whole(draw: random.Random, most: int) -> int:
    """Draw from 0 to `most`; made of `random()`, the one draw that Python promises to keep from version to version."""
    return int(draw.random() * (most + 1))


def _central(side: int, width: int, height: int) -> Box:
    """Return the central square of `side` pixels; a smaller picture's largest."""
    side = min(side, width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side

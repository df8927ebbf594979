"""Cuts: which part of a picture is seen follows from the key alone."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.data.imagefolder import ImageFolder
from fgtrain.images import Cut, augmented, centre, cut_into, random_cut

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.integers(0, 2**32), st.booleans())
def test_cuts_lie_inside_the_picture(width: int, height: int, seed: int, share: bool) -> None:
    data = ImageFolder(resize=40, crop=32, scale=(0.08, 1.0) if share else None)
    for cut in (random_cut(data, width, height, random.Random(seed)), centre(data, width, height)):
        left, top, right, bottom = cut.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_a_cut_is_a_function_of_its_key() -> None:
    data = ImageFolder(resize=40, crop=32)
    cuts = [[augmented(data, 60, 40, 0, epoch, n) for n in range(50)] for epoch in (0, 1)]
    assert cuts[0] == [augmented(data, 60, 40, 0, 0, n) for n in range(50)]
    assert cuts[0] != cuts[1]
    assert {c.flip for c in cuts[0]} == {True, False}
    assert augmented(data, 60, 40, 7, 3, 11) == Cut((12, 8, 44, 40), flip=True)  # never changes


def test_a_cut_of_the_right_size_is_copied_and_mirrored() -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    pixels.setflags(write=False)  # as what is mapped from a file
    out = torch.empty(3, 3, 3, dtype=torch.uint8)
    cut_into(out, pixels, Cut((2, 1, 5, 4)))
    np.testing.assert_array_equal(out.numpy(), pixels[1:4, 2:5])
    cut_into(out, pixels, Cut((2, 1, 5, 4), flip=True))
    np.testing.assert_array_equal(out.numpy(), pixels[1:4, 2:5][:, ::-1])


def test_a_small_picture_is_scaled_up_to_the_crop() -> None:
    out = torch.empty(8, 8, 3, dtype=torch.uint8)
    data = ImageFolder(resize=8, crop=8)
    cut_into(out, np.full((4, 6, 3), 9, np.uint8), centre(data, 6, 4))
    assert (out == 9).all()

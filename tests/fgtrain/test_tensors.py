"""What the network sees of a picture's bytes."""

from __future__ import annotations

import pytest
import torch

from fgtrain.data.digits import Digits
from fgtrain.models.timm import Timm
from fgtrain.recipe import SGD, Batch, Recipe
from fgtrain.tensors import to_input


@pytest.mark.parametrize("channels_last", [False, True])
def test_pictures_are_normalised_by_channel_and_left_as_they_were(channels_last: bool) -> None:
    recipe = Recipe(
        model=Timm(name="test_resnet", classes=10),
        data=Digits(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)),
        optim=SGD(lr=0.1),
        batch=Batch(total=2, micro=2),
        epochs=1,
        channels_last=channels_last,
    )
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    kept = images.clone()
    for _ in range(2):  # the second call meets what the first may have kept
        x = to_input(images, recipe, torch.device("cpu"))
        for c, (mean, std) in enumerate(zip(recipe.data.mean, recipe.data.std, strict=True)):  # type: ignore[attr-defined]
            torch.testing.assert_close(x[:, c], (images[..., c] / 255 - mean) / std)
        assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(images, kept)

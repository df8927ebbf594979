"""From bytes to what the network sees."""

from __future__ import annotations

from functools import lru_cache

import torch

from fgtrain.data import Images
from fgtrain.recipe import Recipe

Rgb = tuple[float, float, float]


def to_input(images: torch.Tensor, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Move pictures, uint8 (N, H, W, 3), to the device and normalise them to float (N, 3, H, W)."""
    assert isinstance(recipe.data, Images)
    mean_C11, std_C11 = _constants(recipe.data.mean, recipe.data.std, device)
    x = images.to(device, non_blocking=True).permute(0, 3, 1, 2)  # channels-last already: no copy
    x = x if recipe.channels_last else x.contiguous()  # while a value is still one byte
    return x.float().sub_(mean_C11).div_(std_C11)


@lru_cache(maxsize=8)  # making them anew is a copy to the device, which waits for it, every micro-batch
def _constants(mean: Rgb, std: Rgb, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation on a scale of 0 to 255, shape (3, 1, 1)."""
    both = torch.tensor([mean, std], device=device).mul_(255).reshape(2, 3, 1, 1)
    return both[0], both[1]

"""From bytes to what the network sees."""

from __future__ import annotations

import torch

from fgtrain.data import Images
from fgtrain.recipe import Recipe


def to_input(images: torch.Tensor, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Move pictures, uint8 (N, H, W, 3), to the device and normalise them to float (N, 3, H, W)."""
    assert isinstance(recipe.data, Images)
    mean = torch.tensor(recipe.data.mean, device=device) * 255
    std = torch.tensor(recipe.data.std, device=device) * 255
    x = (images.to(device, non_blocking=True).float() - mean) / std
    x = x.permute(0, 3, 1, 2)  # the bytes are channels-last already: no copy
    return x if recipe.channels_last else x.contiguous()

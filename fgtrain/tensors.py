"""From bytes to what the network sees."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from fgtrain.data import Images
from fgtrain.recipe import Recipe

Rgb = tuple[float, float, float]


def to_input(
    images: torch.Tensor, recipe: Recipe, device: torch.device, flips: npt.NDArray[np.bool_] | None = None
) -> torch.Tensor:
    """Move pictures, uint8 (N, H, W, 3), to the device and normalise them to float (N, 3, H, W).

    Those of `flips`, bool (N,), are mirrored there.
    """
    assert isinstance(recipe.data, Images)
    mean_C11, std_C11 = _constants(recipe.data.mean, recipe.data.std, device)
    bytes_NHWC = images.to(device, non_blocking=True)
    if flips is not None and flips.any():
        flips_N111 = torch.from_numpy(flips).to(device, non_blocking=True).reshape(-1, 1, 1, 1)
        bytes_NHWC = torch.where(flips_N111, bytes_NHWC.flip(2), bytes_NHWC)
    x = bytes_NHWC.permute(0, 3, 1, 2)  # channels-last already: no copy
    x = x if recipe.channels_last else x.contiguous()  # while a value is still one byte
    return x.float().sub_(mean_C11).div_(std_C11)


@lru_cache(maxsize=8)  # making them anew is a copy to the device, which waits for it, every micro-batch
def _constants(mean: Rgb, std: Rgb, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation on a scale of 0 to 255, shape (3, 1, 1)."""
    both = torch.tensor([mean, std], device=device).mul_(255).reshape(2, 3, 1, 1)
    return both[0], both[1]

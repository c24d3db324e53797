"""The one way from a model's images to 8-bit pixels, for real and generated pictures alike."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) float in [-1, 1] -> uint8: what lies outside is clamped, the rest rounded.

    Truncating instead of rounding would lower a quarter of the 256 levels by one on their way
    through [-1, 1], and a cast without the clamp would wrap 1.01 round to black.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, but float in [-1, 1] was expected: "
            "map 8-bit pixels there first, by pixels / 127.5 - 1"
        )
    if images.isnan().any():
        raise ValueError(
            "images hold NaN, which has no pixel value: the model or its sampler diverged; "
            "try a lower learning rate or full precision"
        )
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)

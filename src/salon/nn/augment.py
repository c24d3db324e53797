"""DiffAugment: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training".

Real and generated images alike go through it before the discriminator, and the generator's gradient
comes back through it.

Images move by whole pixels: nothing is interpolated, so nothing is blurred.

N images, H and W rows and columns.
"""

import torch
from torch import Tensor, nn


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).uniform_(low, high)


def jitter(x: Tensor) -> Tensor:
    """Brightness by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    x = x + _uniform(x, -0.5, 0.5)
    gray = x.mean(1, keepdim=True)  # (N, 1, H, W)
    x = gray + (x - gray) * _uniform(x, 0, 2)
    level = x.mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return level + (x - level) * _uniform(x, 0.5, 1.5)


def _shift(x: Tensor, dim: int, share: float) -> Tensor:
    """Each image by its own whole number of pixels along one of its sides; zeros come in."""
    n, side = len(x), x.shape[dim]
    most = round(share * side)
    by = torch.randint(-most, most + 1, (n, 1), device=x.device)
    source = torch.arange(side, device=x.device) - by  # (N, side)
    shape = [n, 1, 1, 1]
    shape[dim] = side
    inside = ((source >= 0) & (source < side)).view(shape)
    index = source.clamp(0, side - 1).view(shape).expand_as(x)
    return x.gather(dim, index) * inside


def translate(x: Tensor, share: float) -> Tensor:
    return _shift(_shift(x, 2, share), 3, share)


def _span(x: Tensor, side: int, share: float) -> Tensor:
    """A stretch of `share` of a side around a place anywhere on it, (N, side) bool."""
    length = round(share * side)
    first = -(length // 2)
    last = side - (length + 1) // 2
    start = torch.randint(first, last + 1, (len(x), 1), device=x.device)
    at = torch.arange(side, device=x.device)
    return (at >= start) & (at < start + length)


def cut_out(x: Tensor, share: float) -> Tensor:
    """Zeros in a rectangle of `share` of each side, whose centre is anywhere on the image."""
    rows = _span(x, x.shape[2], share)[:, None, :, None]
    columns = _span(x, x.shape[3], share)[:, None, None, :]
    return x * ~(rows & columns)


class DiffAugment(nn.Module):
    """Each image by draws of its own. Paper: color=True, translation=0.125, cutout=0.5."""

    def __init__(
        self,
        *,
        color: bool,
        translation: float,  # at most, as a share of the side; 0 = off
        cutout: float,  # side of the hole, as a share of the image's; 0 = off
    ) -> None:
        super().__init__()
        for name, share in {"translation": translation, "cutout": cutout}.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f"augment.{name}={share}; expected a share of the side from 0, which is off, "
                    "to below 1"
                )
        self.color, self.translation, self.cutout = color, translation, cutout

    def forward(self, images: Tensor) -> Tensor:
        if self.color:
            images = jitter(images)
        if self.translation:
            images = translate(images, self.translation)
        if self.cutout:
            images = cut_out(images, self.cutout)
        return images  # (N, 3, H, W)

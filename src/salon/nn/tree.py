"""The blocks of the GANs that paint at several resolutions at once: one branch for each.

StackGAN++: Zhang et al. 2017, "StackGAN++: Realistic Image Synthesis with Stacked Generative
Adversarial Networks"; AttnGAN (Xu et al. 2018) is built from the same ones. Gated linear units:
Dauphin et al. 2017.

    [c, z] -> Root -> h (N, G, R, R) ─ ToImage ─> image of R x R
                      └─ the family's own next branch ─ UpBlock ─> h (N, G', 2R, 2R) ─> ...
    image -> Trunk -> (N, 8D, 4, 4) ─ Heads.alone ─> logit: is it real?
                                    └ Heads.joint ─> logit: is it real, and does it match?

No convolution that batch normalisation follows has a bias. N images, C channels, G and D the
channels that a generator and a discriminator are measured in, K features of the condition.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.nn.blocks import conv_norm, init_he

SIDE = 4  # of the map that generators start from and discriminators end at
SLOPE = 0.2  # of the leaky ReLUs: Radford et al. 2016, section 3
FULL = 4  # doublings of a discriminator's channels before it only keeps them: 64 px to 4 px


def doublings(resolution: int) -> int:
    """How often a map of 4 x 4 is doubled to reach this resolution.

    Raises ValueError for one that is not reached.
    """
    count = int(math.log2(resolution / SIDE)) if resolution > SIDE else 0
    if count < 1 or SIDE * 2**count != resolution:
        raise ValueError(
            f"a resolution of {resolution}: this network doubles a map of 4 x 4 until it has the "
            "image's size; expected 8, 16, 32, 64, ... Set data.resolution accordingly"
        )
    return count


def init_orthogonal(module: nn.Module) -> None:
    """Orthogonal weights (Saxe et al. 2014), zero biases; normalisation scales N(1, 0.02)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(part.weight)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


# -- generators ------------------------------------------------------------------------------------


def conv_glu(c_in: int, c_out: int) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation, and one half of the channels gates the other."""
    return nn.Sequential(
        nn.Conv2d(c_in, 2 * c_out, 3, padding=1, bias=False), nn.BatchNorm2d(2 * c_out), nn.GLU(1)
    )


class UpBlock(nn.Module):
    """Nearest neighbour to twice the size, then `conv_glu`."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv_glu(c_in, c_out)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))  # (N, C_out, 2H, 2W)


class ResGLU(nn.Module):
    """`conv_glu`, one more convolution and normalisation, plus the input; nothing after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_glu(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h))  # (N, C, H, W)


class Root(nn.Module):
    """The first branch: a vector to a map of `channels` at `resolution`.

    The 4 x 4 map has as many channels more as each doubling halves: 16 G for 64 px.
    """

    def __init__(self, features: int, *, channels: int, resolution: int) -> None:
        super().__init__()
        steps = doublings(resolution)
        widths = [channels * 2**i for i in range(steps, -1, -1)]  # 16G, 8G, 4G, 2G, G at 64 px
        pixels = SIDE**2 * widths[0]
        self.start = nn.Sequential(
            nn.Linear(features, 2 * pixels, bias=False), nn.BatchNorm1d(2 * pixels), nn.GLU(1)
        )
        self.ups = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x).unflatten(1, (-1, SIDE, SIDE))  # (N, 16 G, 4, 4)
        return self.ups(h)  # (N, G, R, R)


class ToImage(nn.Module):
    """A branch's map (N, C, R, R) as an image (N, 3, R, R) in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.conv(h))


# -- discriminators --------------------------------------------------------------------------------


def conv_leaky(c_in: int, c_out: int, *, norm: str) -> nn.Sequential:
    """3 x 3 convolution, normalisation, leaky ReLU."""
    return nn.Sequential(*conv_norm(c_in, c_out, 3, padding=1, norm=norm), nn.LeakyReLU(SLOPE))


class Trunk(nn.Module):
    """An image to a map of 4 x 4 of 8 D channels, whatever its resolution.

    At 64 px four convolutions of stride 2 go to D, 2D, 4D and 8D. A larger image goes on to 16D,
    32D, ..., and 3 x 3 convolutions come back to 8D; a smaller one starts at a later width.
    """

    def __init__(self, *, channels: int, resolution: int, norm: str = "batch") -> None:
        super().__init__()
        steps = doublings(resolution)
        first = max(0, FULL - steps)
        widths = [channels * 2**i for i in range(first, first + steps)]  # D, 2D, 4D, 8D at 64 px
        self.width = channels * 2 ** (FULL - 1)  # 8 D
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(SLOPE),
        ]
        for a, b in pairwise(widths):
            layers += conv_norm(a, b, 4, stride=2, padding=1, norm=norm)
            layers.append(nn.LeakyReLU(SLOPE))
        for exponent in range(steps - 1, FULL - 1, -1):
            a, b = channels * 2**exponent, channels * 2 ** (exponent - 1)
            layers.append(conv_leaky(a, b, norm=norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # (N, 8 D, 4, 4)


class Match(nn.Module):
    """A question about a map (N, C, 4, 4): is it of a real image that matches its condition?"""

    def __init__(self, channels: int, condition: int, *, norm: str = "batch") -> None:
        super().__init__()
        self.mix = conv_leaky(channels + condition, channels, norm=norm)
        self.joint_logit = nn.Conv2d(channels, 1, SIDE)

    def joint(self, h: Tensor, condition: Tensor) -> Tensor:
        return self.joint_logit(self.mix(tiled(h, condition))).flatten()  # (N)


class Heads(Match):
    """That question, and one that looks at no condition: is it of a real image?"""

    def __init__(self, channels: int, condition: int, *, norm: str = "batch") -> None:
        super().__init__(channels, condition, norm=norm)
        self.alone_logit = nn.Conv2d(channels, 1, SIDE)

    def alone(self, h: Tensor) -> Tensor:
        return self.alone_logit(h).flatten()  # (N)


class Judge(nn.Module):
    """Of one resolution: a trunk, and the questions about its map."""

    questions: type[Match]
    heads: Match

    def __init__(
        self, *, channels: int, condition: int, resolution: int, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.trunk = Trunk(channels=channels, resolution=resolution, norm=norm)
        self.heads = self.questions(self.trunk.width, condition, norm=norm)
        self.initialize()
        if norm == "none":
            init_he(self, SLOPE)

    def initialize(self) -> None:
        """Where batch normalisation keeps the signal's size."""
        init_orthogonal(self)


class Critic(Judge):
    """With both questions."""

    questions = Heads
    heads: Heads


def tiled(h: Tensor, condition: Tensor) -> Tensor:
    """A map (N, C, H, W) with a condition (N, K) at each of its places."""
    everywhere = condition[:, :, None, None].expand(-1, -1, *h.shape[2:])  # (N, K, H, W)
    return torch.cat([h, everywhere], dim=1)  # (N, C + K, H, W)


# -- images ----------------------------------------------------------------------------------------


def resized(images: Tensor, resolution: int) -> Tensor:
    """Images (N, 3, H, H) at a lower resolution, antialiased; (N, 3, R, R).

    Raises ValueError for images that are smaller already.
    """
    side = images.shape[-1]
    if side < resolution:
        raise ValueError(
            f"data.resolution={side}: this network paints {resolution} px and would learn from "
            f"blurred enlargements. Set data.resolution to {resolution} or more"
        )
    if side == resolution:
        return images
    # Bilinear weights are positive, so no pixel leaves [-1, 1].
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)

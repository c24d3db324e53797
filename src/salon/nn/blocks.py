"""The convolutional bricks of the U-Net and the autoencoder.

Residual blocks: He et al. 2016. Group normalisation: Wu & He 2018. Sinusoids: Vaswani et al. 2017,
section 3.5; as a time embedding, Ho et al. 2020, appendix B.

N images, C channels, H and W rows and columns, E features of the time embedding.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)

MAX_PERIOD = 10_000  # Vaswani et al. 2017
GROUPS = 32  # Wu & He 2018


def zero_init(module: M) -> M:
    """Start a residual branch at zero, so that its block begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or the largest power of two below that divides the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps)


def sinusoids(t: Tensor, features: int) -> Tensor:
    """[cos | sin] of t at geometric frequencies from 1 down to 1 / MAX_PERIOD, in float32.

    Half precision cannot hold both the integer and the fraction of a t near 1000.
    """
    half = features // 2
    indices = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * indices / half)
    angles = t.float()[:, None] * frequencies  # (N, features / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (N, features)


class TimeEmbedding(nn.Module):
    """Sinusoids, then a perceptron of one hidden layer."""

    def __init__(self, *, features: int, width: int) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(
                f"a time embedding has as many cosines as sines: {features} features are odd; "
                "choose an even number of channels"
            )
        self.features = features
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        waves = sinusoids(t, self.features).to(self.linear_1.weight.dtype)  # (N, features)
        return self.linear_2(F.silu(self.linear_1(waves)))  # (N, E)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution; the time is added; once more; plus the input.

    `width` is the width E of the time embedding, None in a network without time. `forward` takes
    the embedding after its SiLU, which is the same for all blocks and so is computed once.
    """

    def __init__(self, c_in: int, c_out: int, *, width: int | None, eps: float) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = None if width is None else nn.Linear(width, c_out)
        self.norm2 = group_norm(c_out, eps)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (N, C_out, H, W)
        if self.time is not None:
            h = h + self.time(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h  # (N, C_out, H, W)


NORMS = ("batch", "none")


def conv_norm(
    c_in: int, c_out: int, kernel: int, *, norm: str, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """A convolution and its batch normalisation; or, for a `norm` of "none", one with a bias.

    Raises ValueError for another `norm`.
    """
    if norm not in NORMS:
        raise ValueError(f"model.discriminator.norm={norm!r}; expected one of {', '.join(NORMS)}")
    plain = norm == "none"
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=padding, bias=plain)
    return [conv] if plain else [conv, nn.BatchNorm2d(c_out)]


@torch.no_grad()
def init_he(network: nn.Module, slope: float) -> None:
    """Convolutions that keep a signal's size where nothing normalises it, behind leaky ReLUs of
    this slope: He et al. 2015, section 2.2. Linear layers keep PyTorch's law."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, a=slope)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Bottleneck(nn.Module):
    """A residual block through a quarter of the channels; its activation follows the sum.

    Of the discriminator and generator of Reed et al. 2016, and of StackGAN's first stage.
    """

    def __init__(self, channels: int, activation: nn.Module, *, norm: str = "batch") -> None:
        super().__init__()
        inner = channels // 4
        self.activation = activation
        self.branch = nn.Sequential(
            *conv_norm(channels, inner, 1, norm=norm), activation,
            *conv_norm(inner, inner, 3, padding=1, norm=norm), activation,
            *conv_norm(inner, channels, 3, padding=1, norm=norm),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))  # (N, C, H, W)


class Downsample(nn.Module):
    """Halve H and W by a convolution of stride 2.

    `asymmetric` pads right and below only, as Stable Diffusion's autoencoder does; its U-Net pads
    all around.
    """

    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))  # (N, C, H + 1, W + 1)
        return self.conv(x)  # (N, C, H / 2, W / 2)


class Upsample(nn.Module):
    """Double H and W: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (N, C, 2H, 2W)

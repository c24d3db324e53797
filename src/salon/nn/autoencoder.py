"""The autoencoder with a Kullback-Leibler penalty that latent diffusion works in.

Rombach et al. 2022, section 3.1; Kingma & Welling 2014. With patch=1 and its sizes it is Stable
Diffusion's kl-f8; with a larger patch the finest convolutions run at H / patch, where a CPU can
afford them (sub-pixel convolution: Shi et al. 2016).

    x -> unshuffle -> conv_in -> (Res x blocks, Downsample) ... -> mid -> conv_out -> mean, logvar
    x <- shuffle <- conv_out <- (Upsample, Res x (blocks + 1)) ... <- mid <- conv_in <- z

N images, C channels, H and W rows and columns, Z latent channels, f the factor of downsampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.nn.attention import SpatialAttention
from salon.nn.blocks import Downsample, ResBlock, Upsample, group_norm

EPS = 1e-6
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as in Stable Diffusion: exp stays finite in float32

INITIAL_LOGVAR = -4.0


class Moments(NamedTuple):
    """A diagonal Gaussian over latents."""

    mean: Tensor  # (N, Z, H / f, W / f)
    logvar: Tensor  # (N, Z, H / f, W / f)


def sample(moments: Moments, eps: Tensor) -> Tensor:
    """The reparametrisation of Kingma & Welling 2014; eps is standard normal noise."""
    return moments.mean + torch.exp(0.5 * moments.logvar) * eps  # (N, Z, H / f, W / f)


def _res(c_in: int, c_out: int) -> ResBlock:
    return ResBlock(c_in, c_out, width=None, eps=EPS)


def _mid(channels: int, *, attention: bool) -> nn.Sequential:
    between = [SpatialAttention(channels, heads=1)] if attention else []
    return nn.Sequential(_res(channels, channels), *between, _res(channels, channels))


class Encoder(nn.Module):
    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        channels: Sequence[int],
        blocks: int,
        mid_attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c_in, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        c = channels[0]
        for i, c_next in enumerate(channels):
            level = nn.Sequential(
                _res(c, c_next), *(_res(c_next, c_next) for _ in range(blocks - 1))
            )
            if i + 1 < len(channels):
                level.append(Downsample(c_next, asymmetric=True))
            self.down.append(level)
            c = c_next
        self.mid = _mid(c, attention=mid_attention)
        self.norm_out = group_norm(c, EPS)
        self.conv_out = nn.Conv2d(c, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        channels: Sequence[int],
        blocks: int,
        mid_attention: bool,
    ) -> None:
        super().__init__()
        c = channels[-1]
        self.conv_in = nn.Conv2d(c_in, c, 3, padding=1)
        self.mid = _mid(c, attention=mid_attention)
        self.up = nn.ModuleList()
        for i, c_next in reversed(list(enumerate(channels))):
            level = nn.Sequential(_res(c, c_next), *(_res(c_next, c_next) for _ in range(blocks)))
            if i > 0:
                level.append(Upsample(c_next))
            self.up.append(level)
            c = c_next
        self.norm_out = group_norm(c, EPS)
        self.conv_out = nn.Conv2d(c, c_out, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Images to Gaussians over latents, and latents to images, which are not clamped."""

    def __init__(
        self,
        *,
        in_channels: int,
        latent_channels: int,  # Z
        channels: Sequence[int],  # of each level, the finest first
        blocks: int,  # residual blocks of a level of the encoder; the decoder has one more
        patch: int,  # side of the square of pixels that conv_in sees as one
        mid_attention: bool,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.patch = patch
        self.factor = patch * 2 ** (len(channels) - 1)
        pixels = in_channels * patch**2
        z = latent_channels
        self.encoder = Encoder(
            pixels, 2 * z, channels=channels, blocks=blocks, mid_attention=mid_attention
        )
        self.decoder = Decoder(
            z, pixels, channels=channels, blocks=blocks, mid_attention=mid_attention
        )
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        # Little noise at first: from logvar 0 the decoder sees nothing but noise until the means
        # have grown, which takes hundreds of batches.
        with torch.no_grad():
            self.quant_conv.get_parameter("bias")[z:] = INITIAL_LOGVAR
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def encode(self, x: Tensor) -> Moments:
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"autoencoder: an image of {x.shape[2]} x {x.shape[3]} does not divide by its "
                f"downsampling of {self.factor}; set data.resolution to a multiple of "
                f"{self.factor}, or choose another autoencoder"
            )
        h = self.encoder(F.pixel_unshuffle(x, self.patch))  # (N, 2Z, H / f, W / f)
        mean, logvar = self.quant_conv(h).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(z)), self.patch)  # (N, C, H, W)

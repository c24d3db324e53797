"""The text-conditional VAE: the baseline between GANs and diffusion.

Kingma & Welling 2014; conditional: Sohn et al. 2015, "Learning Structured Output Representation
using Deep Conditional Generative Models", section 4.1, whose prior hears the condition too.

    x (N, 3, H, W), pooled text -> encoder -> q(z | x, text), mean and logvar (N, Z)
    pooled text                 -> prior   -> p(z | text), mean and logvar (N, Z)
    z (N, Z), pooled text       -> decoder -> x^ (N, 3, H, W)

    loss = sum over pixels (x - x^)^2 / (2 scale^2) + beta KL(q || p): the negative ELBO of a normal
    likelihood of that scale, for beta 1, up to a constant; logged per pixel

With p(z) = N(0, I) instead, z says what the text says as well, for a few nats of the two thousand
that a picture costs, and what is drawn from p(z) then contradicts the caption.

N images, Z latent dimensions, E features of the condition, c channels of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.losses.kl import kl
from salon.models.base import MakeOptimizer, Schedule, TextToImage
from salon.nn.autoencoder import LOGVAR_MAX, LOGVAR_MIN, Moments, sample
from salon.nn.blocks import Downsample, ResBlock, Upsample, group_norm, zero_init
from salon.text.base import TextTower, unit
from salon.types import Batch, Text

EPS = 1e-6  # of the group norms, as in the autoencoder


class Encoder(nn.Module):
    """q(z | x, text): residual blocks that the text modulates, then a linear map to the moments."""

    def __init__(
        self, *, channels: Sequence[int], patch: int, width: int, latent: int, side: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(3 * patch**2, channels[0], 3, padding=1)
        self.res, self.down = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            self.res.append(ResBlock(channels[max(0, i - 1)], c, width=width, eps=EPS))
            last = i == len(channels) - 1
            self.down.append(nn.Identity() if last else Downsample(c, asymmetric=False))
        self.norm = group_norm(channels[-1], EPS)
        self.out = nn.Linear(channels[-1] * side**2, 2 * latent)

    def forward(self, x: Tensor, e: Tensor) -> Moments:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))  # (N, c, H / p, W / p)
        for res, down in zip(self.res, self.down, strict=True):
            h = down(res(h, e))
        h = F.silu(self.norm(h)).flatten(1)
        mean, logvar = self.out(h).chunk(2, dim=1)  # (N, Z) each
        return Moments(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))


class Decoder(nn.Module):
    """p(x | z, text): from a map of side `side` up, modulated by z and the text."""

    def __init__(
        self, *, channels: Sequence[int], patch: int, width: int, latent: int, side: int
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        levels = list(reversed(channels))
        self.start = nn.Linear(width, levels[0] * side**2)
        self.res, self.up = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(levels):
            self.res.append(ResBlock(levels[max(0, i - 1)], c, width=width, eps=EPS))
            self.up.append(nn.Identity() if i == len(levels) - 1 else Upsample(c))
        self.norm = group_norm(levels[-1], EPS)
        self.conv_out = nn.Conv2d(levels[-1], 3 * patch**2, 3, padding=1)

    def forward(self, e: Tensor) -> Tensor:
        h = self.start(e).unflatten(1, (-1, self.side, self.side))  # (N, c, side, side)
        for res, up in zip(self.res, self.up, strict=True):
            h = up(res(h, e))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm(h))), self.patch)  # (N, 3, H, W)


class CVAE(TextToImage):
    SETTINGS = ("temperature",)
    temperature: float

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        resolution: int,
        channels: Sequence[int],  # of each level, the finest first
        patch: int,
        width: int,  # E
        latent: int,  # Z
        beta: float,  # weight of the KL; 1 is the ELBO
        scale: float,  # of the normal likelihood: how far a pixel may be off
        temperature: float,  # spread of z when sampling; 1 is the prior
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        factor = patch * 2 ** (len(channels) - 1)
        if resolution % factor:
            raise ValueError(
                f"data.resolution={resolution} does not divide by this model's downsampling of "
                f"{factor}. Set data.resolution to a multiple of {factor}"
            )
        self.text, self.resolution, self.latent = text, resolution, latent
        self.keep_frozen(text)
        self.beta, self.scale = beta, scale
        self.set_sampling(temperature=temperature)
        sizes = {
            "channels": channels, "patch": patch, "width": width, "latent": latent,
            "side": resolution // factor,
        }  # fmt: skip
        self.told = nn.Sequential(nn.Linear(text.pooled_width, width), nn.SiLU())
        self.encoder = Encoder(**sizes)
        # What sampling uses: the average of these four is what an EMA keeps.
        self.generator = nn.ModuleDict(
            {
                "told": nn.Sequential(nn.Linear(text.pooled_width, width), nn.SiLU()),
                # N(0, I) for every caption to begin with.
                "prior": nn.Sequential(
                    nn.Linear(text.pooled_width, width),
                    nn.SiLU(),
                    zero_init(nn.Linear(width, 2 * latent)),
                ),
                "mix": nn.Sequential(
                    nn.Linear(width + latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
                ),
                "decoder": Decoder(**sizes),
            }
        )

    @property
    def networks(self) -> list[nn.Module]:
        return [self.told, self.encoder, *self.generator.values()]

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "text": [self.text],
            "encoder": [self.told, self.encoder],
            "decoder": [self.generator],  # with the prior
        }

    def prior(self, pooled: Tensor) -> Moments:
        """p(z | text) of captions (N, D'), (N, Z) each."""
        mean, logvar = self.generator["prior"](unit(pooled)).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))

    def decode(self, z: Tensor, pooled: Tensor) -> Tensor:
        """z (N, Z) under a caption (N, D') to images (N, 3, H, W), not clamped."""
        told = self.generator["told"](unit(pooled))  # (N, E)
        return self.generator["decoder"](self.generator["mix"](torch.cat([told, z], dim=1)))

    def _step(self, batch: Batch, split: str) -> Tensor:
        pooled = self.text(batch.captions).pooled
        moments = self.encoder(batch.images, self.told(unit(pooled)))
        z = sample(moments, torch.randn_like(moments.mean))
        count, pixels = len(batch.images), batch.images[0].numel()
        error = (batch.images - self.decode(z, pooled)).square().flatten(1).mean(1)
        divergence = kl(standardised(moments, self.prior(pooled))) / pixels
        loss = (error / (2 * self.scale**2) + self.beta * divergence).mean()
        told = {"loss": loss, "mse": error.mean(), "kl_nats": divergence.mean() * pixels}
        for name, value in told.items():
            self.log(f"{split}/{name}", value, batch_size=count, sync_dist=split == "val")
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # Fixed noise, so that the number is comparable over time.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx)
            self._step(batch, "val")

    @property
    def averaged(self) -> nn.Module:
        return self.generator

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        prior = self.prior(text.pooled)
        return self.decode(sample(prior, z * self.temperature), text.pooled)


def standardised(q: Moments, p: Moments) -> Moments:
    """q in units of p: its divergence from N(0, I) is that of q from p."""
    return Moments((q.mean - p.mean) * torch.exp(-0.5 * p.logvar), q.logvar - p.logvar)

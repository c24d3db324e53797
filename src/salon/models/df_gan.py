"""DF-GAN: one generator and one discriminator at full resolution, without any normalisation.

Tao et al. 2022, "DF-GAN: A Simple and Effective Baseline for Text-to-Image Synthesis". The text
enters every block of G as affine maps of its channels; D judges image and text by one head, and is
smoothed where the real images with their own texts lie (MA-GP). As an alternative, the objective
of Huang et al. 2024 ("The GAN is dead; long live the GAN!", R3GAN), which has no text, with the
matching-aware term of Reed et al. 2016.

    z, text -> c = [z, text] ------+-----------+- ... -+
    z -> linear -> 4 x 4 map -> up block -> up block ... -> conv, tanh -> fake
    image -> conv -> down blocks -> 4 x 4 map, [map, text] -> two convs -> logit

    D: real image and its text up; fake and its text, real image and another text down; + penalty
    G: fake and its text up

N images, E text features, Z noise, c = E + Z features of the condition, C channels of a map of
h x w, L levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    relativistic_discriminator,
    relativistic_generator,
)
from salon.losses.pairs import WrongPairs
from salon.losses.penalties import full_precision, matching_aware, zero_centered
from salon.models.adversarial import Adversarial, Loss, discerned
from salon.nn.augment import DiffAugment
from salon.nn.blocks import init_he
from salon.text.base import TextTower, unit
from salon.types import Batch, Text

SIDE = 4  # of the map where the generator starts and the discriminator ends
SLOPE = 0.2  # of every leaky ReLU

# -- the generator ---------------------------------------------------------------------------------


def mlp(condition: int, channels: int, *, start: float) -> nn.Sequential:
    """One number a channel from the condition; `start` for every condition to begin with."""
    last = nn.Linear(channels, channels)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Linear(condition, channels), nn.ReLU(), last)


class Affine(nn.Module):
    """gamma(c) h + beta(c), channel by channel; the identity to begin with."""

    def __init__(self, channels: int, *, condition: int) -> None:
        super().__init__()
        self.gamma = mlp(condition, channels, start=1.0)
        self.beta = mlp(condition, channels, start=0.0)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        gamma, beta = self.gamma(c)[:, :, None, None], self.beta(c)[:, :, None, None]
        return torch.addcmul(beta, gamma, h)  # (N, C, h, w)


class DFBlock(nn.Module):
    """Deep fusion: affine, leaky ReLU, twice."""

    def __init__(self, channels: int, *, condition: int) -> None:
        super().__init__()
        self.first = Affine(channels, condition=condition)
        self.second = Affine(channels, condition=condition)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(h, c), SLOPE)
        return F.leaky_relu(self.second(h, c), SLOPE)


class UpBlock(nn.Module):
    """Nearest neighbours x 2, then fusion and convolution, twice, plus the shortcut.

    What is pointwise is computed before the pixels are repeated: the same values, at a quarter of
    the price.
    """

    def __init__(self, c_in: int, c_out: int, *, condition: int) -> None:
        super().__init__()
        self.fuse1 = DFBlock(c_in, condition=condition)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.fuse2 = DFBlock(c_out, condition=condition)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        residual = self.conv1(up(self.fuse1(h, c)))  # (N, C_out, 2h, 2w)
        residual = self.conv2(self.fuse2(residual, c))
        return up(self.skip(h)) + residual


def up(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2.0, mode="nearest")


class Generator(nn.Module):
    def __init__(
        self,
        *,
        text_width: int,  # E
        resolution: int,
        latent: int,  # Z
        channels: int,  # of the finest level; twice as many at each coarser one
        widest: int,  # channels, at most
    ) -> None:
        super().__init__()
        self.latent = latent
        levels = level_count(resolution)
        widths = [min(widest, channels * 2**i) for i in reversed(range(levels))]
        self.start = nn.Linear(latent, widths[0] * SIDE**2)
        self.blocks = nn.ModuleList(
            UpBlock(widths[max(0, i - 1)], width, condition=latent + text_width)
            for i, width in enumerate(widths)
        )
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, e: Tensor) -> Tensor:
        c = torch.cat([z, e], dim=1)  # (N, Z + E)
        h = self.start(z).unflatten(1, (-1, SIDE, SIDE))  # (N, C, 4, 4)
        for block in self.blocks:
            h = block(h, c)
        return torch.tanh(self.to_image(F.leaky_relu(h, SLOPE)))  # (N, 3, H, W)


# -- the discriminator -----------------------------------------------------------------------------


class DownBlock(nn.Module):
    """Halves the map; `gate` times its residual branch, to begin with, is added to the shortcut."""

    def __init__(self, c_in: int, c_out: int, *, gate: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(SLOPE),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1)
        self.gamma = nn.Parameter(torch.full((1,), float(gate)))

    def forward(self, h: Tensor) -> Tensor:
        residual = self.residual(h)  # (N, C, h / 2, w / 2)
        # Averaged before the shortcut's pointwise map, which is linear: the same at a quarter.
        return self.skip(F.avg_pool2d(h, 2)) + self.gamma.to(residual) * residual


class Discriminator(nn.Module):
    """`features` looks at images alone, `head` at features and text, so that a batch of real images
    is looked at once for its own texts and for others'."""

    def __init__(
        self,
        *,
        text_width: int,  # E
        resolution: int,
        channels: int,  # of the finest level; twice as many at each coarser one
        widest: int,  # channels, at most
        head: int,  # channels of the head
        gate: float,  # of the residual branches to begin with; 0 in the published code
        init: str,  # "he", or "pytorch" as in the published code
    ) -> None:
        if init not in ("he", "pytorch"):
            raise ValueError(f"model.discriminator.init={init!r}; expected 'he' or 'pytorch'")
        super().__init__()
        levels = level_count(resolution)
        widths = [min(widest, channels * 2**i) for i in range(levels + 1)]
        stem = nn.Conv2d(3, widths[0], 3, padding=1)
        downs = [DownBlock(c_in, c_out, gate=gate) for c_in, c_out in pairwise(widths)]
        self.features = nn.Sequential(stem, *downs)  # -> (N, C, 4, 4)
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1] + text_width, head, 3, padding=1, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(head, 1, SIDE, bias=False),
        )
        if init == "he":
            init_he(self, SLOPE)

    def match(self, h: Tensor, e: Tensor) -> Tensor:
        """Features (N, C, 4, 4) under texts (N, E) to logits (N,)."""
        tiled = e[:, :, None, None].expand(-1, -1, SIDE, SIDE)
        return self.head(torch.cat([h, tiled], dim=1)).flatten()

    def forward(self, images: Tensor, e: Tensor) -> Tensor:
        return self.match(self.features(images), e)


def level_count(resolution: int) -> int:
    """Halvings from the resolution to the 4 x 4 map."""
    levels = round(math.log2(resolution / SIDE))
    if levels < 1 or SIDE * 2**levels != resolution:
        raise ValueError(
            f"data.resolution={resolution}: DF-GAN doubles a map of {SIDE} x {SIDE}; set "
            "data.resolution to 8, 16, 32 or another power of two"
        )
    return levels


# -- objectives ------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """One look of the discriminator, and what it looked at: leaves that penalties differentiate."""

    real: Tensor  # (N,) logits of real images under their own texts
    wrong: Tensor  # (N,) of real images under other texts
    fake: Tensor  # (N,) of fakes under the texts that they were drawn from
    images: Tensor  # (N, 3, H, W)
    texts: Tensor  # (N, E)
    fakes: Tensor  # (N, 3, H, W)


class Objective(ABC):
    smooths_fakes: bool  # whether the penalty differentiates by the fakes

    @abstractmethod
    def discriminator(self, judged: Judged) -> Tensor:
        """Without the penalty, ()."""

    @abstractmethod
    def penalty(self, judged: Judged) -> Tensor:
        """Weighted, ()."""

    @abstractmethod
    def generator(self, fake: Tensor, real: Callable[[], Tensor]) -> Tensor:
        """Of the fakes' logits; `real` gives those of the real images to who compares, ()."""


class HingeMAGP(Objective):
    """DF-GAN's own: the hinge loss, and the matching-aware gradient penalty of D at real images
    with their own texts, by both: weight E |grad|^power."""

    smooths_fakes = False

    def __init__(self, *, weight: float, power: float) -> None:  # 2 and 6 in the paper
        self.weight, self.power = weight, power

    def discriminator(self, judged: Judged) -> Tensor:
        return hinge_discriminator(judged.real, judged.wrong, judged.fake)

    def penalty(self, judged: Judged) -> Tensor:
        return matching_aware(
            judged.real, judged.images, judged.texts, weight=self.weight, power=self.power
        )

    def generator(self, fake: Tensor, real: Callable[[], Tensor]) -> Tensor:
        del real
        return hinge_generator(fake)


class Relativistic(Objective):
    """RpGAN + R1 + R2 (R3GAN): every logit is compared with the real image's under the same text.

    A real image under another text is a further fake, compared with the same image under its own.
    """

    smooths_fakes = True

    def __init__(self, *, gamma: float, wrong_weight: float) -> None:
        if not 0 <= wrong_weight <= 1:
            raise ValueError(
                f"model.objective.wrong_weight={wrong_weight}: it is the share of wrong pairs "
                "among the fakes; expected 0 to 1"
            )
        self.gamma, self.wrong_weight = gamma, wrong_weight

    def discriminator(self, judged: Judged) -> Tensor:
        fake = relativistic_discriminator(judged.real, judged.fake)
        wrong = relativistic_discriminator(judged.real, judged.wrong)
        return (1 - self.wrong_weight) * fake + self.wrong_weight * wrong

    def penalty(self, judged: Judged) -> Tensor:
        r1 = zero_centered(judged.real, judged.images)
        r2 = zero_centered(judged.fake, judged.fakes)
        return 0.5 * self.gamma * (r1 + r2)

    def generator(self, fake: Tensor, real: Callable[[], Tensor]) -> Tensor:
        return relativistic_generator(real(), fake)


# -- the model -------------------------------------------------------------------------------------


class Play(NamedTuple):
    images: Tensor  # (N, 3, H, W)
    texts: Tensor  # (N, E)
    pairs: WrongPairs
    fakes: Tensor  # (N, 3, H, W), with their graph


class DFGAN(Adversarial[Play]):
    SETTINGS = ("temperature", "truncation")
    truncation: float | None  # |z| at most when sampling, before the temperature; None = no bound
    generator: Generator
    discriminator: Discriminator

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        resolution: int,
        generator: Callable[..., Generator],  # given text_width, resolution
        discriminator: Callable[..., Discriminator],  # given text_width, resolution
        objective: Objective,
        penalty_every: int,  # batches; the penalty weighs as much more (lazy regularisation)
        augment: DiffAugment,  # of all that D sees in training
        truncation: float | None,
        **adversarial: Any,  # pairs, optimizer, discriminator_optimizer, schedule, temperature
    ) -> None:
        if penalty_every < 1:
            raise ValueError(
                f"model.penalty_every={penalty_every}; expected a number of batches, at least 1"
            )
        sizes = {"text_width": text.pooled_width, "resolution": resolution}
        super().__init__(
            text=text, resolution=resolution,
            generator=generator(**sizes), discriminator=discriminator(**sizes),
            r1=None,  # the objective brings its own penalty
            **adversarial,
        )  # fmt: skip
        self.set_sampling(truncation=truncation)
        self.objective, self.penalty_every, self.augment = objective, penalty_every, augment

    # -- the play ------------------------------------------------------------------------------

    @property
    def period(self) -> int:
        return self.penalty_every

    def prepare(self, batch: Batch) -> Play:
        return self.play(
            batch, torch.randn(len(batch.images), *self.latent_shape, device=self.device)
        )

    def play(self, batch: Batch, z: Tensor) -> Play:
        texts = unit(self.text(batch.captions).pooled.float())
        fakes = self.generator(z, texts).float()
        return Play(batch.images, texts, self.wrong_pairs(batch.captions), fakes)

    def discriminator_loss(self, play: Play) -> Loss:
        due = self.batches_seen % self.penalty_every == 0
        judged = self.look(play, smooth=due)
        total = self.objective.discriminator(judged)
        told = {
            "real": judged.real.mean(),
            "wrong": judged.wrong.mean(),
            "fake": judged.fake.mean(),
            **discerned(
                real=[judged.real], wrong=[judged.wrong], fake=[judged.fake], pairs=play.pairs
            ),
        }
        if due:
            told["penalty"] = self.objective.penalty(judged)
            # Lazy regularisation: Karras et al. 2020 (StyleGAN2), section 3.1.
            total = total + self.penalty_every * told["penalty"]
        return Loss(total, told)

    def look(self, play: Play, *, smooth: bool) -> Judged:
        """What the discriminator says to a play; `smooth`: so that a penalty can be taken."""
        by_fakes = smooth and self.objective.smooths_fakes
        images = play.images.detach().requires_grad_(smooth)
        texts = play.texts.detach().requires_grad_(smooth)
        fakes = play.fakes.detach().requires_grad_(by_fakes)
        with full_precision(self.device, smooth):
            h = self.discriminator.features(self.augment(images))
            real = self.discriminator.match(h, texts)
            wrong = self.discriminator.match(h, texts[play.pairs.index])
        with full_precision(self.device, by_fakes):
            fake = self.discriminator(self.augment(fakes), texts)
        return Judged(real.float(), wrong.float(), fake.float(), images, texts, fakes)

    def generator_loss(self, play: Play) -> Loss:
        @torch.no_grad()
        def real() -> Tensor:
            return self.discriminator(self.augment(play.images), play.texts).float()

        fake = self.discriminator(self.augment(play.fakes), play.texts).float()
        return Loss(self.objective.generator(fake, real), {"fake": fake.mean()})

    def judge(self, images: Tensor, text: Text) -> Tensor:
        return self.discriminator(images, unit(text.pooled))

    # -- sampling ------------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.generator.latent,)

    def set_sampling(self, **settings: Any) -> None:
        super().set_sampling(**settings)
        bound = settings.get("truncation")
        if bound is not None and not bound > 0:
            raise ValueError(f"truncation={bound}; expected a bound of |z| above 0, or null")

    def paint(self, z: Tensor, text: Text) -> Tensor:
        if self.truncation is not None:
            z = truncated(z, self.truncation)
        return self.generator(self.temperature * z, unit(text.pooled))


def truncated(z: Tensor, bound: float) -> Tensor:
    """Standard normal z to the normal that is cut off at +-bound, quantile by quantile."""
    low = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
    quantile = low + (1 - 2 * low) * torch.special.ndtr(z.double())
    return torch.special.ndtri(quantile).to(z)

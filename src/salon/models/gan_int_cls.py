"""GAN-INT-CLS: the first GAN that paints from a sentence.

Reed et al. 2016, "Generative Adversarial Text to Image Synthesis"; the networks and losses are
those of its published code for birds and flowers, which the paper describes in outline. There a
wrong pair is another picture under the right caption; the paper's Algorithm 1 has it the other way.

    G   z (N, Z), text (N, T) ──> 4 x 4 ─ residual ──> 8 x 8 ─ residual ──> 16 ──> ... ──> x (H, W)
    D   x ──> H / 2 ──> ... ──> 8 x 8 ──> 4 x 4 ─ residual ──┬── 1 x 1 ── 4 x 4 ──> logit
                                          text (N, T) ───────┘

    L_D = BCE(D(x, t), 1) + w BCE(D(x_wrong, t), 0) + (1 - w) BCE(D(G(z, t), t), 0)
    L_G = mean over t and t~ of BCE(D(G(z, t), t), 1), those of t~ weighted by w_int

    t~ = (t_j + t_{j + N/2}) / 2: midpoints of the batch's two halves, which D is never trained on

GAN-CLS is the one without the midpoints, GAN-INT the one without the wrong pairs.

N images, Z latent dimensions, T entries of the text vector, E features of each network's own
reading of it, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from salon.losses.adversarial import cls_discriminator, non_saturating
from salon.losses.pairs import WrongPairs
from salon.models.adversarial import Adversarial, Loss, discerned
from salon.nn.blocks import Bottleneck, conv_norm, init_he
from salon.text.base import TextTower, unit
from salon.types import Batch, Text

SLOPE = 0.2  # of the leaky ReLUs: Radford et al. 2016, "... with Deep Convolutional GANs"


def widths(channels: int, resolution: int) -> list[int]:
    """Channels of the maps of side 4, 8, ... resolution / 2: eight times, then half at each."""
    doublings = (resolution // 4).bit_length() - 1
    if resolution != 4 * 2**doublings or doublings < 2:
        raise ValueError(
            f"data.resolution={resolution}; this GAN doubles a map of 4 x 4 at least twice. Set "
            "data.resolution to 16, 32, 64 or another power of two"
        )
    if channels * 8 % 2 ** (doublings - 1):
        raise ValueError(
            f"channels={channels} cannot be halved as often as data.resolution={resolution} "
            f"asks for; set model.generator.channels and model.discriminator.channels to multiples "
            f"of {2 ** (doublings - 1) // 8}"
        )
    return [8 * channels // 2**i for i in range(doublings)]


def up(c_in: int, c_out: int) -> nn.Module:
    return nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)


class Generator(nn.Module):
    """No activation before a residual block: the batch normalisation's output goes in as it is."""

    def __init__(
        self,
        *,
        text_width: int,  # T
        resolution: int,
        latent: int,  # Z
        embedding: int,  # E
        channels: int,  # ngf of the published code: the 4 x 4 map has eight times as many
    ) -> None:
        super().__init__()
        c = widths(channels, resolution)
        self.latent = latent
        self.text = nn.Sequential(nn.Linear(text_width, embedding), nn.LeakyReLU(SLOPE))
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + embedding, c[0], 4, bias=False),
            nn.BatchNorm2d(c[0]),
            Bottleneck(c[0], nn.ReLU()),
        ]
        for i, (c_in, c_out) in enumerate(pairwise(c)):
            layers += [up(c_in, c_out), nn.BatchNorm2d(c_out)]
            layers.append(Bottleneck(c_out, nn.ReLU()) if i == 0 else nn.ReLU())
        self.image = nn.Sequential(*layers, up(c[-1], 3), nn.Tanh())
        initialize(self)

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        both = torch.cat([z, self.text(text)], dim=1)  # (N, Z + E)
        return self.image(both[:, :, None, None])  # (N, 3, H, W)


class Discriminator(nn.Module):
    """One logit for both questions, whether the image is real and whether it shows the text.

    The 8 x 8 map is normalised and not activated, as in the published code for interpolation.
    """

    def __init__(
        self,
        *,
        text_width: int,  # T
        resolution: int,
        embedding: int,  # E
        channels: int,  # ndf of the published code: the 4 x 4 map has eight times as many
        norm: str = "batch",  # as in the published code; "none" for `model.r1`
    ) -> None:
        super().__init__()
        c = widths(channels, resolution)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(3, c[0], 4, stride=2, padding=1, bias=False)]
        layers.append(nn.LeakyReLU(SLOPE))
        for i, (c_in, c_out) in enumerate(pairwise(c)):
            layers += conv_norm(c_in, c_out, 4, stride=2, padding=1, norm=norm)
            if i < len(c) - 3:  # before the 8 x 8 map
                layers.append(nn.LeakyReLU(SLOPE))
        self.image = nn.Sequential(*layers, Bottleneck(c[-1], nn.LeakyReLU(SLOPE), norm=norm))
        normal = [nn.BatchNorm1d(embedding)] if norm == "batch" else []
        self.text = nn.Sequential(nn.Linear(text_width, embedding), *normal, nn.LeakyReLU(SLOPE))
        self.joint = nn.Sequential(
            *conv_norm(c[-1] + embedding, c[-1], 1, norm=norm),
            nn.LeakyReLU(SLOPE), nn.Conv2d(c[-1], 1, 4, bias=False),
        )  # fmt: skip
        if norm == "batch":
            initialize(self)
        else:
            init_he(self, SLOPE)

    def match(self, seen: Tensor, text: Tensor) -> Tensor:
        """Maps of `image` (N, C, 4, 4) under texts (N, T) to logits (N,)."""
        read = self.text(text)[:, :, None, None].expand(-1, -1, 4, 4)  # (N, E, 4, 4)
        return self.joint(torch.cat([seen, read], dim=1)).flatten()

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return self.match(self.image(images), text)


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Convolutions and scales of Radford et al. 2016; linear layers keep PyTorch's law."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


class Play(NamedTuple):
    images: Tensor  # (N, 3, H, W)
    text: Tensor  # (N, T)
    wrong: WrongPairs


class GANIntCLS(Adversarial[Play]):
    discriminator: Discriminator

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        generator: Callable[..., Generator],  # given text_width, resolution
        discriminator: Callable[..., Discriminator],  # given the same
        augment: Callable[[Tensor], Tensor],  # of all that D is shown in training
        resolution: int,
        wrong_weight: float,  # w, the wrong pairs' share of what is not right; 0 = GAN-INT
        interpolation: float | None,  # w_int of the midpoints; None = no midpoints: GAN-CLS
        **adversarial: Any,  # pairs, optimizer, discriminator_optimizer, schedule, temperature, r1
    ) -> None:
        if not 0 <= wrong_weight <= 1:
            raise ValueError(f"model.wrong_weight={wrong_weight}; expected a share from 0 to 1")
        sizes = {"text_width": text.pooled_width, "resolution": resolution}
        painter = generator(**sizes)
        super().__init__(
            text=text, resolution=resolution,
            generator=painter, discriminator=discriminator(**sizes),
            **adversarial,
        )  # fmt: skip
        self.augment, self.latent = augment, painter.latent
        self.wrong_weight, self.interpolation = wrong_weight, interpolation

    # -- the play -----------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Play:
        text = unit(self.text(batch.captions).pooled)  # (N, T)
        return Play(batch.images, text, self.wrong_pairs(batch.captions))

    def invent(self, text: Tensor) -> Tensor:
        """Images (N, 3, H, W) of texts (N, T), from noise of their own."""
        return self.generator(text.new_empty(len(text), self.latent).normal_(), text)

    def shown(self, images: Tensor, text: Tensor) -> Tensor:
        """D's logits (N,) in training."""
        return self.discriminator(self.augment(images), text)

    def discriminator_loss(self, play: Play) -> Loss:
        images = self.watched(play.images)
        with self.exactly():
            # A wrong image is another one of the batch: what D sees in it, it has seen.
            seen = self.discriminator.image(self.augment(images))  # (N, C, 4, 4)
            real = self.discriminator.match(seen, play.text)
        wrong = self.discriminator.match(seen[play.wrong.index], play.text)
        # Apart from the real ones, and not in one batch: each has batch statistics of its own.
        fake = self.shown(self.invent(play.text).detach(), play.text)
        loss = cls_discriminator(real, wrong, fake, wrong_weight=self.wrong_weight)
        told = discerned(real=[real], wrong=[wrong], fake=[fake], pairs=play.wrong)
        return self.smoothed(Loss(loss, told), real, images)

    def generator_loss(self, play: Play) -> Loss:
        count = len(play.text)
        if self.interpolation is None:
            return Loss(non_saturating(self.shown(self.invent(play.text), play.text)), {})
        text = torch.cat([play.text, midpoints(play.text)])  # (N + N / 2, T), of one batch
        logits = self.shown(self.invent(text), text)
        given, between = non_saturating(logits[:count]), non_saturating(logits[count:])
        weight = self.interpolation * (len(text) - count)
        loss = (count * given + weight * between) / len(text)
        return Loss(loss, {"loss_given": given, "loss_between": between})

    # -- without training ---------------------------------------------------------------------

    def judge(self, images: Tensor, text: Text) -> Tensor:
        return self.discriminator(images, unit(text.pooled))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        return self.generator(z * self.temperature, unit(text.pooled))


def midpoints(text: Tensor) -> Tensor:
    """Of the batch's first half and its second, (N / 2, T): Reed et al. 2016, with beta = 1/2."""
    half = len(text) // 2
    return (text[:half] + text[half : 2 * half]) / 2

"""StackGAN-v2: one generator paints at several resolutions at once, each for a judge of its own.

Zhang et al. 2017, "StackGAN++: Realistic Image Synthesis with Stacked Generative Adversarial
Networks"; networks and losses are those of the authors' code for captions.

    pooled text ── conditioning augmentation ──> c ~ N(mu, sigma)
    [c, z] -> Root ──> h ── [c, h], residuals, double ──> h ── the same ──> h
                       │                                  │                 │
                   image R / 4                        image R / 2        image R
                       │                                  │                 │
                   D(x), D(x, mu)                     D(x), D(x, mu)    D(x), D(x, mu)

    L_D = sum over scales of (R_c + W_c + F_c) + (R_u + W_u + F_u), W_u a REAL image's
    L_G = sum over scales of (F_c + F_u) + kl KL

R real, F fake, W real images with another caption; _c with the text and _u without it; KL the mean
over the condition's dimensions. D sees mu, detached in its own loss; in the generator's loss it is
not, so that what D holds for a match teaches the conditioning augmentation too.

N images, Z latent dimensions, C dimensions of the condition, W the width of the pooled text, G the
generator's channels, D a discriminator's, R pixels of the last image's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from salon.losses.adversarial import non_saturating, tree_discriminator
from salon.losses.kl import kl
from salon.losses.pairs import WrongPairs
from salon.models.adversarial import Adversarial, Loss, discerned
from salon.nn.autoencoder import Moments
from salon.nn.conditioning import ConditioningAugmentation
from salon.nn.tree import (
    Critic,
    ResGLU,
    Root,
    ToImage,
    UpBlock,
    conv_glu,
    init_orthogonal,
    resized,
    tiled,
)
from salon.text.base import TextTower, unit
from salon.types import Batch, Text


class Painted(NamedTuple):
    images: list[Tensor]  # (N, 3, H, H) in [-1, 1], the smallest first
    moments: Moments  # of the condition, (N, C) each


class Branch(nn.Module):
    """A map (N, G, H, H) and the condition to one of twice the side and half the channels."""

    def __init__(self, channels: int, *, condition: int, blocks: int) -> None:
        super().__init__()
        self.join = conv_glu(channels + condition, channels)
        self.blocks = nn.Sequential(*(ResGLU(channels) for _ in range(blocks)))
        self.up = UpBlock(channels, channels // 2)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.up(self.blocks(self.join(tiled(h, c))))  # (N, G / 2, 2H, 2H)


class Generator(nn.Module):
    def __init__(
        self,
        *,
        text_width: int,  # W
        latent: int,  # Z
        condition: int,  # C
        augmentation: str,  # a kind in salon.nn.conditioning; "glu" is the published one
        channels: int,  # G, of the first branch; each further one has half of the last
        blocks: int,  # residual, of each branch but the first
        branches: int,
        resolution: int,  # R, of the last branch; each has half of the next one's
    ) -> None:
        super().__init__()
        if branches < 1 or resolution % 2 ** (branches - 1) or channels % 2 ** (branches - 1):
            raise ValueError(
                f"model.generator.branches={branches}: each branch but the last halves the "
                f"resolution of {resolution}, and each but the first the {channels} channels; "
                "expected at least 1, and what both can be halved for. Set data.resolution, "
                "model.generator.channels or model.generator.branches"
            )
        self.latent, self.condition = latent, condition
        self.resolutions = [resolution // 2**i for i in range(branches - 1, -1, -1)]
        widths = [channels // 2**i for i in range(branches)]
        self.augment = ConditioningAugmentation(text_width, condition, augmentation)
        self.root = Root(latent + condition, channels=channels, resolution=self.resolutions[0])
        self.branches = nn.ModuleList(
            Branch(width, condition=condition, blocks=blocks) for width in widths[:-1]
        )
        self.to_image = nn.ModuleList(ToImage(width) for width in widths)
        init_orthogonal(self)

    def forward(self, noise: Tensor, pooled: Tensor) -> Painted:  # (N, Z + C), (N, W)
        z, eps = noise.split([self.latent, self.condition], dim=1)
        c, moments = self.augment(pooled, eps)  # (N, C)
        h = self.root(torch.cat([c, z], dim=1))  # (N, G, R / 4, R / 4) of three branches
        images = [self.to_image[0](h)]
        for branch, to_image in zip(self.branches, self.to_image[1:], strict=True):
            h = branch(h, c)
            images.append(to_image(h))
        return Painted(images, moments)


class Play(NamedTuple):
    real: Tensor  # (N, 3, R, R)
    fakes: list[Tensor]  # (N, 3, H, H), the smallest first, with their graph
    moments: Moments  # of the condition, with their graph
    pairs: WrongPairs


class StackGANTree(Adversarial[Play]):
    generator: Generator
    discriminator: nn.ModuleList  # of Critics, the smallest first

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        generator: Callable[..., Generator],  # given text_width, resolution
        discriminator: Callable[..., Critic],  # of one scale; given condition, resolution
        resolution: int,
        kl_weight: float,  # of the mean over the condition's dimensions
        # pairs, optimizer, discriminator_optimizer (one for all judges), schedule, temperature, r1
        **adversarial: Any,
    ) -> None:
        tree = generator(text_width=text.pooled_width, resolution=resolution)
        critics = nn.ModuleList(
            discriminator(condition=tree.condition, resolution=side) for side in tree.resolutions
        )
        super().__init__(
            text=text, resolution=resolution, generator=tree, discriminator=critics, **adversarial
        )
        self.kl_weight = kl_weight

    @property
    def critics(self) -> list[Critic]:
        return list(self.discriminator)  # type: ignore[arg-type]

    # -- training -----------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Play:
        noise = torch.randn(len(batch.images), *self.latent_shape, device=self.device)
        fakes, moments = self.generator(noise, unit(self.text(batch.captions).pooled))
        return Play(batch.images, fakes, moments, self.wrong_pairs(batch.captions))

    def discriminator_loss(self, play: Play) -> Loss:
        mean = play.moments.mean.detach()  # (N, C)
        total, scores = mean.new_zeros(()), mean.new_zeros(())
        images = self.watched(play.real)
        for critic, image in zip(self.critics, play.fakes, strict=True):
            joint, alone = critic.heads.joint, critic.heads.alone
            with self.exactly():
                real_map = critic.trunk(resized(images, image.shape[-1]))
                real, real_alone = joint(real_map, mean), alone(real_map)
            scores = scores + real + real_alone  # (N,)
            # A pass for each kind: batch normalisation shall not mix real images with fakes.
            fake_map = critic.trunk(image.detach())
            fake, wrong = joint(fake_map, mean), joint(real_map, mean[play.pairs.index])
            # The images of the wrong pairs are those of the batch, so their logits are these.
            total = total + tree_discriminator(
                real, wrong, fake, real_alone, real_alone, alone(fake_map)
            )
        # Of the last scale, which is what is drawn.
        told = discerned(real=[real], wrong=[wrong], fake=[fake], pairs=play.pairs)
        return self.smoothed(Loss(total, told), scores, images)

    def generator_loss(self, play: Play) -> Loss:
        mean = play.moments.mean
        adversarial = mean.new_zeros(())
        for critic, image in zip(self.critics, play.fakes, strict=True):
            h = critic.trunk(image)
            joint, alone = critic.heads.joint(h, mean), critic.heads.alone(h)
            adversarial = adversarial + non_saturating(joint) + non_saturating(alone)
        divergence = kl(play.moments).mean() / mean.shape[1]
        total = adversarial + self.kl_weight * divergence
        return Loss(total, {"adversarial": adversarial, "kl": divergence})

    def judge(self, images: Tensor, text: Text) -> Tensor:
        mean = self.generator.augment.moments(unit(text.pooled)).mean  # (N, C)
        critic = self.critics[-1]
        return critic.heads.joint(critic.trunk(images), mean)

    # -- sampling -----------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.generator.latent + self.generator.condition,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        return self.generator(z * self.temperature, unit(text.pooled)).images[-1]

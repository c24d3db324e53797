"""StackGAN: one GAN sketches a small image from the caption, a second one redraws it in detail.

Zhang et al. 2017, "StackGAN: Text to Photo-realistic Image Synthesis with Stacked Generative
Adversarial Networks". Networks and losses are those of the authors' PyTorch code, where it differs
from their TensorFlow code and the paper; two choices of the latter are kept as configuration
(`augmentation`, `bottlenecks`).

    pooled text ── conditioning augmentation ──> c1 ~ N(mu1, sigma1)
    [z, c1] -> Stage-I ──> s x s image                 trained first, on images made smaller
                             │  frozen
    pooled text ── its own conditioning augmentation ──> c2 ~ N(mu2, sigma2)
    [encode(s x s image), c2] -> Stage-II ──> R x R image

    D sees mu and not c, and never teaches it: mu is detached in both losses.

    Stage-I    L_D = R_c + (F_c + W_c) / 2                          L_G = F_c + kl KL
    Stage-II   L_D = (R_c + R_u) / 2 + (F_c + F_u + W_c) / 3        L_G = F_c + F_u + kl KL

R real, F fake, W real images with another caption; _c with the text and _u without it; KL the mean
over the condition's dimensions.

N images, Z latent dimensions, C dimensions of the condition, W the width of the pooled text, G the
channels that a generator is measured in, s and R pixels of the first and the second image's side.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.losses.adversarial import cls_discriminator, joint_discriminator, non_saturating
from salon.losses.kl import kl
from salon.losses.pairs import WrongPairs
from salon.models.adversarial import Adversarial, Loss, discerned
from salon.nn.autoencoder import Moments
from salon.nn.blocks import Bottleneck
from salon.nn.conditioning import ConditioningAugmentation
from salon.nn.tree import SIDE, Heads, Judge, Match, doublings, resized, tiled
from salon.text.base import TextTower, unit
from salon.types import Batch, Text

ENCODED = 4  # Stage-II works on a map of 1 / 4 of the first image's side


class Painted(NamedTuple):
    images: Tensor  # (N, 3, H, H) in [-1, 1]
    moments: Moments  # of the condition, (N, C) each


# -- generators ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions, plus the input, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(h + self.layers(h))


def up(c_in: int, c_out: int) -> list[nn.Module]:
    """Nearest neighbour to twice the size, a convolution, its normalisation."""
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return [nn.Upsample(scale_factor=2.0, mode="nearest"), conv, nn.BatchNorm2d(c_out)]


class StageOne(nn.Module):
    """[z, c] to a map of 4 x 4, doubled until it is an image. Its channels end at G / 2."""

    def __init__(
        self,
        *,
        text_width: int,  # W
        latent: int,  # Z
        condition: int,  # C
        augmentation: str,  # a kind in salon.nn.conditioning; "log_sigma" is the TensorFlow code's
        channels: int,  # G
        bottlenecks: bool,  # a residual block at 4 x 4 and at 8 x 8, as the TensorFlow code has it
        resolution: int,  # R, of the data set
        reduction: int,  # R / s: it paints so many times smaller
    ) -> None:
        super().__init__()
        self.latent, self.condition = latent, condition
        self.resolution = resolution // reduction  # s
        self.augment = ConditioningAugmentation(text_width, condition, augmentation)
        steps = doublings(self.resolution)
        widths = [channels * 2**i // 2 for i in range(steps, -1, -1)]  # 8G, 4G, 2G, G, G/2 at 64 px
        pixels = SIDE**2 * widths[0]
        self.start = nn.Sequential(
            nn.Linear(latent + condition, pixels, bias=False), nn.BatchNorm1d(pixels)
        )
        layers: list[nn.Module] = [Bottleneck(widths[0], nn.ReLU()) if bottlenecks else nn.ReLU()]
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += up(a, b)
            layers.append(Bottleneck(b, nn.ReLU()) if bottlenecks and i == 0 else nn.ReLU())
        layers.append(nn.Conv2d(widths[-1], 3, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        self.apply(init_normal)

    @property
    def draws(self) -> int:
        """Numbers of noise that one image takes: z, then the condition's."""
        return self.latent + self.condition

    def forward(self, noise: Tensor, pooled: Tensor) -> Painted:  # (N, Z + C), (N, W)
        z, eps = noise.split([self.latent, self.condition], dim=1)
        c, moments = self.augment(pooled, eps)  # (N, C)
        h = self.start(torch.cat([z, c], dim=1)).unflatten(1, (-1, SIDE, SIDE))  # (N, 8G, 4, 4)
        return Painted(torch.tanh(self.layers(h)), moments)  # (N, 3, s, s)


class StageTwo(nn.Module):
    """Encode the small image, join the condition at each place, redraw; there is no z of its own.

    Its channels start at 4 G on the encoded map and halve with each doubling.
    """

    def __init__(
        self,
        *,
        text_width: int,  # W
        condition: int,  # C
        augmentation: str,  # a kind in salon.nn.conditioning
        channels: int,  # G
        blocks: int,  # residual
        sketch: int,  # s
        resolution: int,  # R
    ) -> None:
        super().__init__()
        doubled = [sketch * 2**i for i in range(1, 11)]
        if resolution not in doubled:
            raise ValueError(
                f"data.resolution={resolution}: Stage-II doubles the {sketch} px of Stage-I; "
                f"expected {', '.join(map(str, doubled[:3]))}, ... Set data.resolution to one of "
                "them, or let a Stage-I be trained for this one: model.stage_one.checkpoint=null"
            )
        self.condition = condition
        self.augment = ConditioningAugmentation(text_width, condition, augmentation)
        g = channels
        self.encode = nn.Sequential(
            nn.Conv2d(3, g, 3, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(g, 2 * g, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * g),
            nn.ReLU(),
            nn.Conv2d(2 * g, 4 * g, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(4 * g),
            nn.ReLU(),
        )  # fmt: skip
        self.join = nn.Sequential(
            nn.Conv2d(4 * g + condition, 4 * g, 3, padding=1, bias=False), nn.BatchNorm2d(4 * g),
            nn.ReLU(),
        )  # fmt: skip
        self.blocks = nn.Sequential(*(Residual(4 * g) for _ in range(blocks)))
        steps = (resolution * ENCODED // sketch).bit_length() - 1
        widths = [4 * g // 2**i for i in range(steps + 1)]  # 4G, 2G, G, G/2, G/4 from 64 to 256 px
        layers = [layer for a, b in pairwise(widths) for layer in (*up(a, b), nn.ReLU())]
        self.decode = nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1, bias=False))
        self.apply(init_normal)

    def forward(self, sketch: Tensor, eps: Tensor, pooled: Tensor) -> Painted:
        c, moments = self.augment(pooled, eps)  # (N, C)
        h = self.join(tiled(self.encode(sketch), c))  # (N, 4G, s / 4, s / 4)
        return Painted(torch.tanh(self.decode(self.blocks(h))), moments)  # (N, 3, R, R)


# -- discriminators --------------------------------------------------------------------------------


class StageOneCritic(Judge):
    """Asks one question: is it real, and does it match?"""

    questions = Match

    def initialize(self) -> None:
        self.apply(init_normal)


class StageTwoCritic(StageOneCritic):
    """Asks that, and without the text: is it real?"""

    questions = Heads
    heads: Heads


def init_normal(part: nn.Module) -> None:
    """Weights N(0, 0.02), normalisation's scales N(1, 0.02): Radford et al. 2016, section 3."""
    if isinstance(part, nn.Conv2d | nn.Linear):
        nn.init.normal_(part.weight, 0.0, 0.02)
    elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(part.weight, 1.0, 0.02)
    else:
        return
    if part.bias is not None:
        nn.init.zeros_(part.bias)


# -- the plays -------------------------------------------------------------------------------------


class Play(NamedTuple):
    real: Tensor  # (N, 3, H, H)
    fake: Tensor  # (N, 3, H, H), with its graph: both losses look at the same ones
    moments: Moments  # of the condition, with their graph
    pairs: WrongPairs


class Answers(NamedTuple):
    """The discriminator on one play, for its own loss."""

    images: Tensor  # (N, 3, H, H), the real ones as it saw them
    real_map: Tensor  # (N, 8 D, 4, 4)
    fake_map: Tensor  # (N, 8 D, 4, 4)
    real: Tensor  # (N), logits with the text, as the next two
    wrong: Tensor  # (N)
    fake: Tensor  # (N)


class Stage(Adversarial[Play]):
    """What the two stages share: everything but how they draw and which questions D answers."""

    generator: StageOne | StageTwo
    discriminator: StageOneCritic

    def __init__(
        self,
        *,
        kl_weight: float,  # of the mean over the condition's dimensions
        # text, resolution, generator, discriminator, pairs, optimizer, discriminator_optimizer,
        # schedule, temperature, r1
        **adversarial: Any,
    ) -> None:
        super().__init__(**adversarial)
        self.kl_weight = kl_weight

    @abstractmethod
    def draw(self, noise: Tensor, pooled: Tensor) -> Painted:
        """Noise (N, *latent_shape) and pooled text (N, W) of unit entries to images."""

    def prepare(self, batch: Batch) -> Play:
        real = resized(batch.images, self.resolution)
        noise = torch.randn(len(real), *self.latent_shape, device=self.device)
        fake, moments = self.draw(noise, unit(self.text(batch.captions).pooled))
        return Play(real, fake, moments, self.wrong_pairs(batch.captions))

    def answers(self, play: Play) -> Answers:
        critic, mean = self.discriminator, play.moments.mean.detach()  # (N, C)
        images = self.watched(play.real)
        with self.exactly():
            real_map = critic.trunk(images)
            real = critic.heads.joint(real_map, mean)
        # A pass for each kind: batch normalisation shall not mix real images with fakes.
        fake_map = critic.trunk(play.fake.detach())
        return Answers(
            images,
            real_map,
            fake_map,
            real=real,
            wrong=critic.heads.joint(real_map, mean[play.pairs.index]),
            fake=critic.heads.joint(fake_map, mean),
        )

    def told(self, play: Play, answers: Answers) -> dict[str, Tensor]:
        real, wrong, fake = [answers.real], [answers.wrong], [answers.fake]
        return discerned(real=real, wrong=wrong, fake=fake, pairs=play.pairs)

    def regularised(self, adversarial: Tensor, moments: Moments) -> Loss:
        """Plus section 3.2's divergence of the condition from N(0, I)."""
        divergence = kl(moments).mean() / moments.mean.shape[1]
        total = adversarial + self.kl_weight * divergence
        return Loss(total, {"adversarial": adversarial, "kl": divergence})

    def judge(self, images: Tensor, text: Text) -> Tensor:
        mean = self.generator.augment.moments(unit(text.pooled)).mean  # (N, C)
        critic = self.discriminator
        return critic.heads.joint(critic.trunk(resized(images, self.resolution)), mean)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        return self.draw(z * self.temperature, unit(text.pooled)).images


class StageOneGAN(Stage):
    """Learns from the images made as small as it paints, so that the stages share a data set."""

    generator: StageOne

    def __init__(
        self,
        *,
        text: TextTower,
        generator: Callable[..., StageOne],  # given text_width
        discriminator: Callable[..., StageOneCritic],  # given condition, resolution
        **options: Any,  # of `Stage`
    ) -> None:
        first = generator(text_width=text.pooled_width)
        critic = discriminator(condition=first.condition, resolution=first.resolution)
        super().__init__(
            text=text, generator=first, discriminator=critic, resolution=first.resolution,
            **options,
        )  # fmt: skip

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.generator.draws,)

    def draw(self, noise: Tensor, pooled: Tensor) -> Painted:
        return self.generator(noise, pooled)

    def discriminator_loss(self, play: Play) -> Loss:
        seen = self.answers(play)
        total = cls_discriminator(seen.real, seen.wrong, seen.fake, wrong_weight=0.5)
        return self.smoothed(Loss(total, self.told(play, seen)), seen.real, seen.images)

    def generator_loss(self, play: Play) -> Loss:
        critic, mean = self.discriminator, play.moments.mean.detach()
        fake = critic.heads.joint(critic.trunk(play.fake), mean)
        return self.regularised(non_saturating(fake), play.moments)


class StageTwoGAN(Stage):
    """Stage-I is frozen, with its averaged weights and in eval mode: Stage-II learns from the very
    sketches that sampling will show it, each of them made from its own caption and noise alone. In
    the published code its batch normalisation stays in training mode and goes on changing it.
    """

    generator: StageTwo
    discriminator: StageTwoCritic

    def __init__(
        self,
        *,
        text: TextTower,
        stage_one: StageOne | Callable[..., StageOne],  # trained; or given text_width, for weights
        generator: Callable[..., StageTwo],  # given text_width, sketch, resolution
        discriminator: Callable[..., StageTwoCritic],  # given condition, resolution
        resolution: int,
        **options: Any,  # of `Stage`
    ) -> None:
        width = text.pooled_width
        first = stage_one if isinstance(stage_one, StageOne) else stage_one(text_width=width)
        known = first.augment.linear.in_features
        if known != width:
            raise ValueError(
                f"model.stage_one: this Stage-I was trained with a text tower {known} wide, and "
                f"text is one of {width}. Choose the same tower, text=NAME, or let a Stage-I be "
                "trained with this one: model.stage_one.checkpoint=null"
            )
        second = generator(text_width=width, sketch=first.resolution, resolution=resolution)
        critic = discriminator(condition=second.condition, resolution=resolution)
        super().__init__(
            text=text, generator=second, discriminator=critic, resolution=resolution, **options
        )
        self.stage_one = first
        self.keep_frozen(first)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.stage_one.draws + self.generator.condition,)

    def draw(self, noise: Tensor, pooled: Tensor) -> Painted:
        first, eps = noise.split([self.stage_one.draws, self.generator.condition], dim=1)
        with torch.no_grad():
            sketch = self.stage_one(first, pooled).images  # (N, 3, s, s)
        return self.generator(sketch, eps, pooled)

    def discriminator_loss(self, play: Play) -> Loss:
        seen, alone = self.answers(play), self.discriminator.heads.alone
        with self.exactly():
            real_alone = alone(seen.real_map)
        total = joint_discriminator(
            seen.real, seen.wrong, seen.fake, real_alone, alone(seen.fake_map)
        )
        loss = Loss(total, self.told(play, seen))
        return self.smoothed(loss, seen.real + real_alone, seen.images)

    def generator_loss(self, play: Play) -> Loss:
        critic, mean = self.discriminator, play.moments.mean.detach()
        fake = critic.trunk(play.fake)
        joint, alone = critic.heads.joint(fake, mean), critic.heads.alone(fake)
        return self.regularised(non_saturating(joint) + non_saturating(alone), play.moments)

"""AttnGAN: a picture at several resolutions, each stage of which looks at the words again.

Xu et al. 2018, "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative
Adversarial Networks". The networks follow the authors' code.

    caption, eps -> conditioning augmentation -> c (N, C)
    [c, z] -> Root -> h (N, G, R, R) ──────────────────────────> image of R
              [attention of h over the words, h] -> residuals, up -> image of 2R -> ... -> 4R

    D, one for each resolution: is it real, and does it match the caption?
      loss = (R + R') / 2 + (F + F' + W) / 3        ' of the image alone, W of wrong pairs
    G: loss = sum over resolutions of -log D - log D' + lambda DAMSM + KL

The paper has no wrong pairs in D's loss and halves each of G's terms; both are as in the code, so
its lambda is the one here. DAMSM sees the largest image only. D's condition is the tower's pooled
vector itself. A query's attention is masked by its own caption's padding, which the code mixes up
between captions (github.com/taoxugit/AttnGAN/issues/93).

N images, Z latent dimensions, C of the condition, G channels of the generator, L tokens, D the
tower's width, H x W a map's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.losses.adversarial import joint_discriminator, non_saturating
from salon.losses.damsm import damsm, twins
from salon.losses.kl import kl
from salon.losses.pairs import WrongPairs
from salon.models.adversarial import Adversarial, Loss, discerned
from salon.nn.autoencoder import Moments
from salon.nn.conditioning import ConditioningAugmentation
from salon.nn.matching import Matcher
from salon.nn.tree import Critic, ResGLU, Root, ToImage, UpBlock, init_orthogonal
from salon.text.base import TextTower, unit
from salon.types import Batch, Text


class WordAttention(nn.Module):
    """Each place of a map looks for the words it shows: Xu et al. 2018, section 3.1."""

    def __init__(self, *, width: int, channels: int) -> None:
        super().__init__()
        self.words = nn.Linear(width, channels, bias=False)

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A map (N, G, H, W), tokens (N, L, D) and their mask (N, L) to the words' share in each
        place: a map (N, G, H, W), and the shares (N, HW, L)."""
        words = self.words(tokens)  # (N, L, G)
        scores = h.flatten(2).transpose(1, 2) @ words.transpose(1, 2)  # (N, HW, L)
        # Broadcast, so that each image's places meet its own mask.
        share = scores.masked_fill(~mask[:, None], -torch.inf).softmax(2)
        return (share @ words).transpose(1, 2).view_as(h), share


class Refine(nn.Module):
    """The next resolution: the map beside what its places see in the caption, doubled."""

    def __init__(self, *, width: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.attention = WordAttention(width=width, channels=channels)
        self.blocks = nn.Sequential(*(ResGLU(2 * channels) for _ in range(blocks)))
        self.up = UpBlock(2 * channels, channels)

    def forward(self, h: Tensor, text: Text) -> Tensor:
        seen, _ = self.attention(h, text.tokens, text.mask)
        return self.up(self.blocks(torch.cat([seen, h], dim=1)))  # (N, G, 2H, 2W)


class Painted(NamedTuple):
    images: list[Tensor]  # (N, 3, R, R) in [-1, 1] each, the smallest first
    moments: Moments  # of the condition


class Generator(nn.Module):
    def __init__(
        self,
        *,
        channels: int,  # G
        blocks: int,  # residual blocks of a stage
        latent: int,  # Z
        condition: int,  # C
        width: int,  # of the tokens
        pooled_width: int,
        resolution: int,  # of the last stage
        scales: int,
    ) -> None:
        super().__init__()
        self.latent, self.condition = latent, condition
        self.augment = ConditioningAugmentation(pooled_width, condition, "glu")
        first = resolution // 2 ** (scales - 1)
        self.root = Root(condition + latent, channels=channels, resolution=first)
        self.refine = nn.ModuleList(
            Refine(width=width, channels=channels, blocks=blocks) for _ in range(scales - 1)
        )
        self.to_image = nn.ModuleList(ToImage(channels) for _ in range(scales))
        init_orthogonal(self)

    def forward(self, noise: Tensor, text: Text) -> Painted:
        """From noise (N, Z + C): what is drawn, and how the condition is drawn."""
        z, eps = noise.split([self.latent, self.condition], dim=1)
        c, moments = self.augment(unit(text.pooled), eps)
        h = self.root(torch.cat([c, z], dim=1))
        images = [self.to_image[0](h)]
        for refine, to_image in zip(self.refine, self.to_image[1:], strict=True):
            h = refine(h, text)
            images.append(to_image(h))
        return Painted(images, moments)


class Play(NamedTuple):
    text: Text
    condition: Tensor  # (N, D'), what the discriminators are told
    real: Tensor  # (N, 3, H, W)
    painted: Painted
    wrong: WrongPairs
    same: Tensor  # (N, N) pairs that DAMSM must not hold apart


class AttnGAN(Adversarial[Play]):
    generator: Generator
    discriminator: Any  # a ModuleList of Critic, the smallest resolution first

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        # Frozen, trained on this tower. From a checkpoint's recipe: still to be told its widths.
        damsm: Matcher | Callable[..., Matcher],
        generator: Callable[..., Generator],  # given width, pooled_width, resolution, scales
        discriminator: Callable[..., Critic],  # given condition, resolution
        resolution: int,
        scales: int,  # resolutions that are painted, each twice the one before
        damsm_weight: float,  # lambda
        kl_weight: float,  # of the KL per dimension of the condition
        **adversarial: Any,  # pairs, optimizer, discriminator_optimizer, schedule, temperature, r1
    ) -> None:
        if resolution % 2 ** (scales - 1):
            raise ValueError(
                f"model.scales={scales}: {resolution} px cannot be halved {scales - 1} times. Set "
                f"data.resolution to a multiple of {2 ** (scales - 1)}, or fewer scales"
            )
        widths = {"width": text.width, "pooled_width": text.pooled_width}
        super().__init__(
            text=text,
            resolution=resolution,
            generator=generator(**widths, resolution=resolution, scales=scales),
            discriminator=nn.ModuleList(
                discriminator(condition=text.pooled_width, resolution=resolution // 2**i)
                for i in reversed(range(scales))
            ),
            **adversarial,
        )
        self.damsm = damsm if isinstance(damsm, Matcher) else damsm(**widths)
        self._check_space()
        self.keep_frozen(self.damsm)
        self.damsm_weight, self.kl_weight = damsm_weight, kl_weight

    def _check_space(self) -> None:
        """Raises ValueError for a DAMSM that was trained on another kind of tower."""
        takes, has = self.damsm.reads, (self.text.width, self.text.pooled_width)
        if takes != has:
            raise ValueError(
                f"model.damsm reads a text tower of {takes[0]} (tokens) and {takes[1]} (pooled) "
                f"features, and this one has {has[0]} and {has[1]}; it has to be trained on the "
                "same tower. Leave model.damsm.checkpoint away, so that it is found or trained"
            )

    def prepare(self, batch: Batch) -> Play:
        text = self.text(batch.captions)
        noise = torch.randn(len(batch.images), *self.latent_shape, device=self.device)
        painted = self.generator(noise, text)
        wrong = self.wrong_pairs(batch.captions)
        same = twins(batch.captions, self.device)
        return Play(text, unit(text.pooled), batch.images, painted, wrong, same)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Images at every resolution that is painted, the smallest first."""
        count = len(self.discriminator)
        return [F.avg_pool2d(images, 2**i) for i in reversed(range(count))]

    def discriminator_loss(self, play: Play) -> Loss:
        losses, scores, real, wrong, fake = [], [], [], [], []
        others = play.condition[play.wrong.index.to(self.device)]
        images = self.watched(play.real)
        for judge, x, y in zip(
            self.discriminator, self.pyramid(images), play.painted.images, strict=True
        ):
            heads = judge.heads
            with self.exactly():
                seen = judge.trunk(x)
                real.append(heads.joint(seen, play.condition))
                alone = heads.alone(seen)
            scores.append(real[-1] + alone)
            wrong.append(heads.joint(seen, others))
            painted = judge.trunk(y.detach())
            fake.append(heads.joint(painted, play.condition))
            losses.append(
                joint_discriminator(real[-1], wrong[-1], fake[-1], alone, heads.alone(painted))
            )
        told = discerned(real=real, wrong=wrong, fake=fake, pairs=play.wrong)
        loss = Loss(torch.stack(losses).sum(), told)
        return self.smoothed(loss, torch.stack(scores).sum(0), images)

    def generator_loss(self, play: Play) -> Loss:
        adversarial = []
        for judge, image in zip(self.discriminator, play.painted.images, strict=True):
            h = judge.trunk(image)
            joint, alone = judge.heads.joint(h, play.condition), judge.heads.alone(h)
            adversarial.append(non_saturating(joint) + non_saturating(alone))
        seen = self.damsm.look(play.painted.images[-1])
        match = damsm(
            self.damsm.read(play.text), seen.regions, seen.whole, play.same,
            gammas=self.damsm.gammas,
        )  # fmt: skip
        divergence = kl(play.painted.moments).mean() / self.generator.condition
        cheated = torch.stack(adversarial).sum()
        told = {
            "adversarial": cheated,
            "damsm_words": match.words,
            "damsm_sentence": match.sentence,
            "kl": divergence,
        }
        total = cheated + self.damsm_weight * match.total + self.kl_weight * divergence
        return Loss(total, told)

    def judge(self, images: Tensor, text: Text) -> Tensor:
        """The mean over the resolutions."""
        logits = []
        for judge, x in zip(self.discriminator, self.pyramid(images), strict=True):
            logits.append(judge.heads.joint(judge.trunk(x), unit(text.pooled)))
        return torch.stack(logits).mean(0)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.generator.latent + self.generator.condition,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        return self.generator(z * self.temperature, text).images[-1]

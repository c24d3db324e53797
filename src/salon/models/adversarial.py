"""What all GANs here share: the alternation of generator and discriminator, and the clock.

Goodfellow et al. 2014, Algorithm 1 with k = 1. One training batch is one tick and one play:

    prepare           what both losses look at: text, wrong pairs, fakes that they share
    discriminator     its loss -> its step; the generator is not touched
    generator         its loss, against the discriminator just updated -> its step

Each family writes its own play, `prepare`, `discriminator_loss` and `generator_loss`. Its
`discriminator_loss` has to detach the fakes; the generator's step leaves no gradient in D. A family
that offers R1 shows D the real images as `watched` gives them, and adds it by `smoothed`.

N images, Z latent dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from salon.losses.pairs import WrongPairs, choose
from salon.losses.penalties import LazyR1, full_precision
from salon.models.base import MakeOptimizer, Schedule, TextToImage
from salon.text.base import TextTower
from salon.types import Batch, Text

P = TypeVar("P")


class Loss(NamedTuple):
    total: Tensor  # ()
    told: dict[str, Tensor]  # what is logged beside it, () each


class Adversarial(TextToImage, Generic[P]):
    SETTINGS: tuple[str, ...] = ("temperature",)
    temperature: float  # spread of z when sampling; 1 = as in training

    def __init__(
        self,
        *,
        text: TextTower,  # frozen
        resolution: int,  # of what is drawn
        pairs: str,  # how wrong captions are chosen: a name in salon.losses.pairs
        generator: nn.Module,
        discriminator: nn.Module,  # a ModuleList where there are several
        optimizer: MakeOptimizer,  # the generator's
        discriminator_optimizer: MakeOptimizer,
        schedule: Schedule,  # of both learning rates
        temperature: float,
        r1: LazyR1 | None = None,  # of D where the real images lie
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.automatic_optimization = False
        self.text, self.resolution, self.wrong_pairs = text, resolution, choose(pairs)
        self.keep_frozen(text)
        self.generator, self.discriminator, self.r1 = generator, discriminator, r1
        if r1 is not None and any(isinstance(m, _BatchNorm) for m in discriminator.modules()):
            raise ValueError(
                "model.r1 differentiates each image's logit by that image, and batch normalisation "
                "makes it depend on all of them. Say model.discriminator.norm=none, or "
                "model.r1=null"
            )
        for network in (generator, discriminator):  # convolutions' own layout: faster on a CPU
            network.to(memory_format=torch.channels_last)
        self.make_discriminator_optimizer = discriminator_optimizer
        self.gradient_clip: float | None = None
        self.set_sampling(temperature=temperature)

    # -- a family's own play -------------------------------------------------------------------

    @abstractmethod
    def prepare(self, batch: Batch) -> P:
        """What the two losses of a batch share. Fakes that both use keep their graph here."""

    @abstractmethod
    def discriminator_loss(self, play: P) -> Loss:
        """Of logits; no gradient may reach the generator."""

    @abstractmethod
    def generator_loss(self, play: P) -> Loss:
        """Of logits of the discriminator as it is now, after its step."""

    @abstractmethod
    def judge(self, images: Tensor, text: Text) -> Tensor:
        """The discriminator's logit that these images (N, 3, H, W) are real and match, (N,)."""

    # -- R1, where a family offers it ----------------------------------------------------------

    @property
    def period(self) -> int:
        return 1 if self.r1 is None else self.r1.every

    @property
    def smooths(self) -> bool:
        """Whether it is R1's turn in this batch."""
        return self.r1 is not None and self.r1.due(self.batches_seen)

    def watched(self, images: Tensor) -> Tensor:
        """Real images (N, 3, H, W) as D shall see them for its own loss."""
        return images.detach().requires_grad_(self.smooths)

    def exactly(self) -> AbstractContextManager[None]:
        """For D's look at the real images."""
        return full_precision(self.device, self.smooths)

    def smoothed(self, loss: Loss, logits: Tensor, images: Tensor) -> Loss:
        """With R1 of the logits (N,) of `watched` images, where it is due."""
        if self.r1 is None or not self.smooths:
            return loss
        penalty = self.r1(logits, images)
        return Loss(loss.total + penalty, {**loss.told, "r1": penalty / self.r1.every})

    # -- on several devices, and compiled ------------------------------------------------------

    in_turn = True

    @property
    def networks(self) -> list[nn.Module]:
        # Not the discriminator: its gradient penalties differentiate twice, which torch.compile
        # cannot.
        return [self.generator]

    @property
    def shards(self) -> list[nn.Module]:
        return []

    # -- the alternation -----------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        discriminator, generator = optimizers
        play = self.prepare(batch)
        self._step("d", self.discriminator, discriminator, self.discriminator_loss(play))
        # Its weights need no gradients now: that saves a third of the backward pass through D.
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            self._step("g", self.generator, generator, self.generator_loss(play))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers:
            scheduler.step()

    def _step(
        self, who: str, network: nn.Module, optimizer: LightningOptimizer, loss: Loss
    ) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss.total)
        norm = self.gradient_norm(optimizer)
        if self.gradient_clip:  # 0 is off, as Lightning has it
            nn.utils.clip_grads_with_norm_(network.parameters(), self.gradient_clip, norm)
        told = {"loss": loss.total, "grad_norm": norm, **loss.told}
        optimizer.step()
        for name, value in told.items():
            self.log(f"train/{who}_{name}", value.detach())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizers = [
            self.make_discriminator_optimizer(self.discriminator.parameters()),
            self.make_optimizer(self.generator.parameters()),
        ]
        factor = lambda batches: self.schedule(batches, self.budget)  # noqa: E731
        return optimizers, [LambdaLR(optimizer, factor) for optimizer in optimizers]

    def own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Clips each network's gradients by itself, which Lightning leaves to manual optimisation.

        Raises ValueError for what two alternating optimisers cannot do.
        """
        if options.get("accumulate_grad_batches", 1) != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={options['accumulate_grad_batches']}: a GAN's "
                "networks step in turn, each after every batch. Say "
                "trainer.accumulate_grad_batches=1 and a larger batch_size"
            )
        if options.get("precision") in ("16-mixed", "16-true", 16, "16"):
            raise ValueError(
                f"trainer.precision={options['precision']}: the gradient penalties of GANs "
                "overflow in float16; say trainer.precision=bf16-mixed or 32-true"
            )
        if options.get("gradient_clip_algorithm") not in (None, "norm"):
            raise ValueError(
                f"trainer.gradient_clip_algorithm={options['gradient_clip_algorithm']}: a GAN's "
                "networks are clipped by their norm; say trainer.gradient_clip_algorithm=norm"
            )
        if options.get("precision") == "bf16-true":
            raise ValueError(
                "trainer.precision=bf16-true: the penalties and losses of GANs are in float32; say "
                "trainer.precision=bf16-mixed"
            )
        self.gradient_clip = options.get("gradient_clip_val")
        return {**options, "gradient_clip_val": None}

    # -- what can be said without the generator ---------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """How often D holds a caption for a better match to its image than the next one's."""
        logits = self.judge(batch.images, self.text(batch.captions))
        others = [*batch.captions[1:], batch.captions[0]]
        wrong = self.judge(batch.images, self.text(others))
        differs = torch.tensor(
            [a != b for a, b in zip(batch.captions, others, strict=True)], device=logits.device
        )
        if count := int(differs.sum()):
            share = (logits > wrong)[differs].float().mean()
            self.log("val/d_matching", share, batch_size=count, sync_dist=True)

    @property
    def averaged(self) -> nn.Module:
        return self.generator


def accuracy(*logits: Tensor, real: bool) -> Tensor:
    """Share on the right side of 0, (), each tensor counting alike. Near 1 for real and fake, D has
    won; near 0.5, it cannot tell them apart."""
    right = [(part > 0 if real else part < 0).float().mean() for part in logits]
    return torch.stack(right).mean()


def discerned(
    *,
    real: Sequence[Tensor],
    wrong: Sequence[Tensor],
    fake: Sequence[Tensor],
    pairs: WrongPairs,
) -> dict[str, Tensor]:
    """What every family tells of its D: the share of each kind's logits that is right, over all
    discriminators, and the share of wrong pairs that are none."""
    return {
        "accuracy_real": accuracy(*real, real=True),
        "accuracy_wrong": accuracy(*wrong, real=False),
        "accuracy_fake": accuracy(*fake, real=False),
        "same_pairs": pairs.same,
    }

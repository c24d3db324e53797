"""The first stage of latent diffusion: a KL autoencoder.

Kingma & Welling 2014; as a first stage: Rombach et al. 2022, section 3.1 and appendix G.

    x (N, 3, H, W) -> encoder -> mean, logvar (N, C, h, w) -> z = mean + exp(logvar / 2) eps
                                                              -> decoder -> (N, 3, H, W)

    loss = l1 |x - x^| + l2 (x - x^)^2 + perceptual + beta KL, each a mean over an image's pixels

The squares matter where pictures are flat: in |.|, the many small errors of plain areas outweigh
the few large ones along edges, which stay blurred.

N images, C latent channels, h = H / factor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from salon.losses.kl import kl
from salon.models.base import MakeOptimizer, Schedule, Trainee
from salon.nn.autoencoder import AutoencoderKL, sample
from salon.types import Batch


class Autoencoder(Trainee):
    def __init__(
        self,
        *,
        network: AutoencoderKL,
        l1: float,  # weight of |x - x^|
        l2: float,  # weight of (x - x^)^2
        beta: float,  # weight of the KL, per pixel
        perceptual: Callable[[Tensor, Tensor], Tensor] | None,  # (x, x^) -> (N,); None = without
        perceptual_weight: float,
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.network, self.l1, self.l2, self.beta = network, l1, l2, beta
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight

    @property
    def networks(self) -> list[nn.Module]:
        parts = self.network
        return [parts.encoder, parts.quant_conv, parts.post_quant_conv, parts.decoder]

    @property
    def stride(self) -> int:
        return self.network.factor

    def reconstruct(self, images: Tensor) -> Tensor:
        """Through the latents' mean, in [-1, 1]."""
        return self.network.decode(self.network.encode(images).mean).clamp(-1, 1)

    def _step(self, batch: Batch, split: str) -> Tensor:
        moments = self.network.encode(batch.images)
        eps = torch.randn_like(moments.mean)
        out = self.network.decode(sample(moments, eps))
        error = batch.images - out
        l1, l2 = error.abs().mean(), error.square().mean()
        divergence = kl(moments).mean() / batch.images[0].numel()
        loss = self.l1 * l1 + self.l2 * l2 + self.beta * divergence
        if self.perceptual is not None:
            perceived = self.perceptual(batch.images, out).mean()
            loss = loss + self.perceptual_weight * perceived
            self.log(f"{split}/perceptual", perceived)
        size = len(batch.images)
        told = {"loss": loss, "l1": l1, "l2": l2, "kl": divergence}
        for name, value in told.items():
            self.log(f"{split}/{name}", value, batch_size=size, sync_dist=split == "val")
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")
        error = (self.reconstruct(batch.images) - batch.images).square().mean((1, 2, 3))
        psnr = (10 * torch.log10(4 / error)).mean()  # the range is 2 wide
        self.log("val/psnr", psnr, batch_size=len(batch.images), sync_dist=True)

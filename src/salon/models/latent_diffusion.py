"""Latent diffusion: a U-Net that denoises an autoencoder's latents, told by the captions.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". The objective
is a `Process` (rectified flow or v-prediction, `salon.diffusion.schedule`); guidance without a
classifier: Ho & Salimans 2022.

    images ── frozen autoencoder ──> z0 = (latent - mean) / std, by channel    (N, C, h, w)
    captions ── frozen text tower ──> tokens (N, L, D), the null text for a share of them
    t, eps ──> z_t ──> U-Net(z_t, t, tokens) ──> loss = |output - target|^2

    sample: seed -> eps -> sampler over the guided denoiser -> z0 -> decoder -> image

N images, C latent channels, h = H / factor, L tokens, D the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from salon.diffusion.guidance import drop_condition, guided
from salon.diffusion.samplers import SAMPLERS, STOCHASTIC
from salon.diffusion.schedule import Noised, Process, denoiser
from salon.models.base import MakeOptimizer, Schedule, TextToImage, chance, noise
from salon.nn.autoencoder import AutoencoderKL
from salon.nn.unet import UNet
from salon.text.base import TextTower
from salon.types import Batch, Latents, Text


class LatentDiffusion(TextToImage):
    SETTINGS = ("sampler", "steps", "guidance", "interval")
    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None
    latent_mean: Tensor  # (C, 1, 1)
    latent_std: Tensor  # (C, 1, 1)

    def __init__(
        self,
        *,
        autoencoder: AutoencoderKL,  # frozen
        text: TextTower,  # frozen
        unet: Callable[..., UNet],  # given in_channels, out_channels, context_dim, pooled_dim
        pooled: bool,  # whether the U-Net's time embedding gets the pooled text
        process: Process,
        resolution: int,
        drop: float,  # share of captions that the null text replaces in training
        scale_batches: int,  # training batches over which the latents' mean and std are measured
        sampler: str,  # a name in salon.diffusion.samplers
        steps: int,
        guidance: float,  # 1 = conditional, 0 = unconditional
        interval: tuple[float, float] | None,  # of sigma where guidance acts; None = everywhere
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        if resolution % autoencoder.factor:
            raise ValueError(
                f"data.resolution={resolution} does not divide by the autoencoder's downsampling "
                f"of {autoencoder.factor}. Set data.resolution to a multiple of "
                f"{autoencoder.factor}, or choose another autoencoder: "
                "model.autoencoder._stage_=NAME"
            )
        self.autoencoder, self.text = autoencoder, text
        self.keep_frozen(autoencoder, text)
        channels = autoencoder.latent_channels
        self.unet = unet(
            in_channels=channels,
            out_channels=channels,
            context_dim=text.width,
            pooled_dim=text.pooled_width if pooled else None,
        )
        self.process, self.drop, self.scale_batches = process, drop, scale_batches
        side = resolution // autoencoder.factor
        self.resolution, self.shape = resolution, (channels, side, side)
        self.set_sampling(sampler=sampler, steps=steps, guidance=guidance, interval=interval)
        # In the checkpoint, so that sampling needs no data. NaN until they are measured.
        self.register_buffer("latent_mean", torch.full((channels, 1, 1), torch.nan))
        self.register_buffer("latent_std", torch.full((channels, 1, 1), torch.nan))

    @property
    def networks(self) -> list[nn.Module]:
        return [self.unet]

    @property
    def shards(self) -> list[nn.Module]:
        return [*self.unet.blocks(), self.unet]

    @property
    def stride(self) -> int:
        return self.autoencoder.factor * self.unet.factor

    # -- latents ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.latent_std.isnan().any():
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            # Alike on all ranks, which read the same batches.
            self.measure_scale(data.first_batches(self.scale_batches))

    def encoders(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder, "text": self.text}

    @torch.no_grad()
    def moments(self, batch: Batch | Latents) -> tuple[Tensor, Tensor]:
        """Mean and std of each picture's latent, both (N, C, h, w)."""
        if isinstance(batch, Latents):
            return batch.mean, batch.std
        found = self.autoencoder.encode(batch.images)
        return found.mean, torch.exp(0.5 * found.logvar)

    @torch.no_grad()
    def measure_scale(self, batches: Iterable[Batch | Latents]) -> None:
        """Mean and std of each latent channel over many images, so that z0 is standard.

        Stable Diffusion measures one number over its first batch; per channel and over many, it
        does not depend on what that batch held.
        """
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for batch in batches:
            # On the CPU, since not every accelerator has float64.
            z, s = (x.cpu().double() for x in self.moments(move_data_to_device(batch, self.device)))
            count += z[:, 0].numel()
            total = total.to(z) + z.sum((0, 2, 3))  # (C)
            squares = squares.to(z) + (z.square() + s.square()).sum((0, 2, 3))
        mean = total / count
        self.latent_mean.copy_(mean.view_as(self.latent_mean))
        std = (squares / count - mean.square()).sqrt()
        self.latent_std.copy_(std.view_as(self.latent_std))

    def encode(self, batch: Batch | Latents, *, drawn: bool) -> Tensor:
        """Pictures as standard latents (N, C, h, w), drawn or their mean."""
        z, std = self.moments(batch)
        if drawn:
            z = z + std * torch.randn(z.shape, device=self.device)
        return (z - self.latent_mean) / self.latent_std

    def read(self, batch: Batch | Latents) -> Text:
        return batch.text if isinstance(batch, Latents) else self.text(batch.captions)

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        return self.autoencoder.decode(z0 * self.latent_std + self.latent_mean)

    # -- training -----------------------------------------------------------------------------

    def network(self, x: Tensor, t: Tensor, text: Text) -> Tensor:
        return self.unet(x, t, text.tokens, text.mask, text.pooled)

    def null(self) -> Text:
        return self.text([""])

    def loss(self, noised: Noised, t: Tensor, text: Text) -> Tensor:
        """Mean square over each image's latent, (N,)."""
        output = self.network(noised.x, t, text)
        return (output.float() - noised.target).square().mean((1, 2, 3))

    def training_step(self, batch: Batch | Latents, batch_idx: int) -> Tensor:
        count, device = len(batch.captions), self.device
        z0 = self.encode(batch, drawn=True)
        # One draw from each of N equal slices: the same law, and less noise between batches.
        slices = torch.arange(count, device=device) + torch.rand(count, device=device)
        t = self.process.times((slices / count).clamp(1e-4, 1 - 1e-4))
        text = self.read(batch)
        text = drop_condition(text, self.null(), torch.rand(count, device=device) < self.drop)
        noised = self.process.noised(z0, torch.randn_like(z0), t)
        loss = self.loss(noised, t, text).mean()
        self.log("train/loss", loss, batch_size=count)
        return loss

    def validation_step(self, batch: Batch | Latents, batch_idx: int) -> None:
        """The loss at fixed noise levels and noises: comparable between runs and over time."""
        count = len(batch.captions)
        seed = chance(0, batch_idx, self.global_rank)
        z0 = self.encode(batch, drawn=False)
        eps = noise(range(seed % 2**31, seed % 2**31 + count), self.shape, self.device)
        levels = (torch.arange(count, device=self.device) + 0.5) / count
        t = self.process.times(levels)
        losses = self.loss(self.process.noised(z0, eps, t), t, self.read(batch))
        quarters = dict(zip(("low", "mid_low", "mid_high", "high"), losses.chunk(4), strict=False))
        self.log("val/loss", losses.mean(), batch_size=count, sync_dist=True)
        for name, part in quarters.items():
            self.log(f"val/loss_{name}_noise", part.mean(), batch_size=count, sync_dist=True)

    # -- sampling -----------------------------------------------------------------------------

    @property
    def averaged(self) -> nn.Module:
        return self.unet

    def set_sampling(self, **settings: Any) -> None:
        super().set_sampling(**settings)
        names = (*SAMPLERS, *STOCHASTIC)
        if self.sampler not in names:
            raise ValueError(f"sampler={self.sampler!r}; expected one of {', '.join(names)}")
        self.process.sigmas(self.steps)  # says what is wrong with a number of steps

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The start (C, h, w), or of a stochastic sampler (S, C, h, w): the start and the noise of
        S - 1 steps."""
        return (self.steps, *self.shape) if self.sampler in STOCHASTIC else self.shape

    def paint(self, z: Tensor, text: Text) -> Tensor:
        sigmas = self.process.sigmas(self.steps)
        denoise = guided(
            denoiser(self.process, self.network), text, self.null(), self.guidance, self.interval
        )
        walk: Callable[..., Tensor]
        if self.sampler in STOCHASTIC:
            start, eps = z[:, 0], z[:, 1:].transpose(0, 1)  # (S - 1, N, C, h, w)
            walk = partial(STOCHASTIC[self.sampler], eps=eps)
        else:
            start, walk = z, SAMPLERS[self.sampler]
        return self.decode(walk(denoise, start * float(sigmas[0]), sigmas))

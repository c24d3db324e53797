"""The second opinion: a network that reads pictures of shapes, cell by cell.

    x (N, 3, H, W) -> resized -> unshuffled to cells -> residual blocks -> features (N, C, G, G)
                                                             -> 1 x 1 convolution -> (N, K, G, G)

    loss = binary cross-entropy of how much of a cell is covered
         + cross-entropies of shape, color and size, where it is covered, and of the background

Dense labels bind a color to its shape, which a list of what is there does not. It sees scenes of
its own, drawn and rendered as it goes, all compositions among them: it shares no picture with the
models that it will judge, and what they have never seen is not new to it. Of the run's own data it
takes the size of a batch. The pictures are blurred, noisy and faded at random, so that it forgives
what the analytic oracle refuses; its features, averaged over the cells, are a feature space of this
world's own.

N images, C channels, G cells along a side, K channels of labels (`salon.shapes.cells`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.models.base import MakeOptimizer, Schedule, Trainee
from salon.nn.blocks import ResBlock, group_norm
from salon.shapes.cells import CELLS, CHANNELS, OCCUPIED, WIDTH, WORDS, labels
from salon.shapes.render import render
from salon.shapes.world import draw_scene
from salon.types import Batch

EPS = 1e-6
TOLD = tuple(word for word in WORDS if word != OCCUPIED)
FIRST_VALIDATION = 2**32  # seeds of validation; training's are far more than it could need


class CellNet(nn.Module):
    """Pictures to the logits of `salon.shapes.cells.labels`.

    Raises ValueError for a size that the cells do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int,  # pictures are resized to it
        channels: int,  # C, also of the features
        blocks: int,  # each sees two cells further
    ) -> None:
        super().__init__()
        if image_size % CELLS:
            raise ValueError(
                f"model.network.image_size={image_size}; expected a multiple of {CELLS}, the cells "
                "along a side"
            )
        self.image_size, self.patch = image_size, image_size // CELLS
        self.conv_in = nn.Conv2d(3 * self.patch**2, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResBlock(channels, channels, width=None, eps=EPS) for _ in range(blocks))
        )
        self.norm_out = group_norm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, WIDTH, 1)

    def look(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="area")
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))  # (N, C, G, G)
        return F.silu(self.norm_out(self.blocks(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.look(x))  # (N, K, G, G)

    def features(self, x: Tensor) -> Tensor:
        return self.look(x).mean((2, 3))  # (N, C)


class Reader(Trainee):
    def __init__(
        self,
        *,
        network: CellNet,
        pairs: float,  # share of the pictures that show two objects
        held_out: float,  # share of the pictures with compositions that other models never see
        blur: float,  # standard deviation in pixels, at most
        noise: float,  # standard deviation in [-1, 1], at most
        fade: float,  # loss of contrast, at most
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.network, self.pairs, self.held_out = network, pairs, held_out
        self.blur, self.noise, self.fade = blur, noise, fade

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, G, G) of pictures in [-1, 1], for `salon.metrics.lenient.decode`."""
        return self.network(images)

    @property
    def num_features(self) -> int:
        return self.network.conv_out.in_channels

    def features(self, images: Tensor) -> Tensor:
        """(N, C) of pictures (N, 3, H, W) in [-1, 1]."""
        return self.network.features(images)

    # -- its own pictures ----------------------------------------------------------------------

    def draw(self, number: int, seed: int) -> tuple[Tensor, Tensor]:
        """Clean pictures (N, 3, H, W) in [-1, 1] and their labels (N, K, G, G), from the seed."""
        rng = np.random.default_rng(seed)
        scenes = []
        for _ in range(number):
            two, rare = rng.random() < self.pairs, rng.random() < self.held_out
            scenes.append(draw_scene(rng, objects=1 + two, held_out_only=rare))
        pixels = np.stack([render(scene, self.network.image_size) for scene in scenes])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        told = torch.from_numpy(np.stack([labels(scene) for scene in scenes]))
        return images.to(self.device), told.to(self.device)

    def distort(self, images: Tensor) -> Tensor:
        """Each picture by its own measure, at random, and half of them not at all."""
        size, device = len(images), images.device
        draws = torch.rand(3, size, device=device) * (torch.rand(size, device=device) < 0.5)
        sigma, noise, fade = draws * draws.new_tensor([[self.blur], [self.noise], [self.fade]])
        images = blurred(images, sigma) * (1 - fade.view(-1, 1, 1, 1))
        return images + noise.view(-1, 1, 1, 1) * torch.randn_like(images)

    # -- training --------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, told = self.draw(len(batch.images), int(torch.randint(FIRST_VALIDATION, ())))
        loss = cross_entropies(self(self.distort(images)), told)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(batch.images)
        images, told = self.draw(size, FIRST_VALIDATION + batch_idx)
        logits = self(images)
        self.log("val/loss", cross_entropies(logits, told), batch_size=size, sync_dist=True)
        for word, share in cells_right(logits, told).items():
            self.log(f"val/{word}", share, batch_size=size, sync_dist=True)


def cross_entropies(logits: Tensor, told: Tensor) -> Tensor:
    """Of logits and labels (N, K, G, G): the sum over attributes of each one's mean over the cells
    that have it."""
    covered = told[:, CHANNELS[OCCUPIED]]  # (N, 1, G, G)
    loss = F.binary_cross_entropy_with_logits(logits[:, CHANNELS[OCCUPIED]], covered)
    for word in TOLD:
        weight = covered if word != "background" else 1 - covered
        surprise = -logits[:, CHANNELS[word]].log_softmax(1) * told[:, CHANNELS[word]]
        loss = loss + (weight * surprise).sum() / weight.sum().clamp(min=1)
    return loss


def cells_right(logits: Tensor, told: Tensor) -> dict[str, Tensor]:
    """The share of cells with each attribute right, of those that are more than half covered; of
    `occupied` and the background, of all."""
    covered = told[:, CHANNELS[OCCUPIED]][:, 0] > 0.5  # (N, G, G)
    guessed = logits[:, CHANNELS[OCCUPIED]][:, 0] > 0
    shares = {OCCUPIED: (guessed == covered).float().mean()}
    for word in TOLD:
        right = logits[:, CHANNELS[word]].argmax(1) == told[:, CHANNELS[word]].argmax(1)
        shares[word] = (right if word == "background" else right[covered]).float().mean()
    return shares


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Image i under a Gaussian of standard deviation sigma i in pixels, sigma (N,); up to 4
    pixels away, with the border's pixels repeated beyond it."""
    reach, size = 4, len(images)
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-(offset**2) / (2 * sigma[:, None] ** 2).clamp(min=1e-6)).softmax(1)  # (N, 9)
    kernel = kernel.repeat_interleave(3, 0)[:, None, :, None]  # (3N, 1, 9, 1)
    planes = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]  # (1, 3N, ...)
    planes = F.conv2d(planes, kernel, groups=3 * size)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=3 * size)
    return planes.view_as(images)

"""Images and captions in one space, by regions and words: the networks of the DAMSM.

Xu et al. 2018, "AttnGAN", section 3.2: local features of an image from the middle of a network,
global ones from its end, each through one linear layer. The network is Inception-v3 (Szegedy et al.
2016), frozen; or a small one that is trained along, which sees where it looks by two channels of
coordinates (Liu et al. 2018, CoordConv).

N images or captions, T words, R regions, C channels, D features of the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from salon.nn.blocks import Downsample, ResBlock, group_norm
from salon.types import Text

EPS = 1e-6  # of the group norms
SPREAD = 0.1  # the linear layers start uniform in [-0.1, 0.1], as the authors' code has it


class Seen(NamedTuple):
    regions: Tensor  # (N, R, C) or (N, R, D)
    whole: Tensor  # (N, C') or (N, D)


class ImageEncoder(nn.Module):
    width: int  # C, of the regions
    whole_width: int  # C'

    @property
    def pretrained(self) -> list[nn.Module]:
        """The parts that are not trained."""
        return []

    def forward(self, images: Tensor) -> Seen:
        raise NotImplementedError


class ConvRegions(ImageEncoder):
    """Residual blocks at ever lower resolution; the regions are the pixels of one level."""

    def __init__(self, *, channels: Sequence[int], patch: int, level: int) -> None:
        super().__init__()
        if not 0 <= level < len(channels):
            raise ValueError(
                f"matcher.image.level={level}: there are {len(channels)} levels, the finest is 0; "
                f"expected at most {len(channels) - 1}"
            )
        self.patch, self.level = patch, level
        self.width, self.whole_width = channels[level], channels[-1]
        self.conv_in = nn.Conv2d(3 * patch**2 + 2, channels[0], 3, padding=1)
        self.down, self.res = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            before = channels[max(0, i - 1)]
            self.down.append(Downsample(before, asymmetric=False) if i else nn.Identity())
            self.res.append(ResBlock(before, c, width=None, eps=EPS))
        self.norm_regions = group_norm(self.width, EPS)
        self.norm_whole = group_norm(self.whole_width, EPS)

    def forward(self, images: Tensor) -> Seen:
        h = F.pixel_unshuffle(images, self.patch)  # (N, 3 p^2, H / p, W / p)
        h = self.conv_in(torch.cat([h, coordinates(h)], dim=1))
        for i, (down, res) in enumerate(zip(self.down, self.res, strict=True)):
            h = res(down(h))
            if i == self.level:
                regions = F.silu(self.norm_regions(h)).flatten(2).transpose(1, 2)  # (N, R, C)
        return Seen(regions, F.silu(self.norm_whole(h)).mean((2, 3)))


def coordinates(h: Tensor) -> Tensor:
    """Row and column of each pixel, in [-1, 1], (N, 2, H, W)."""
    rows, columns = (torch.linspace(-1, 1, size).to(h) for size in h.shape[2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(len(h), -1, -1, -1)


class InceptionRegions(ImageEncoder):
    """The 17 x 17 regions of Mixed_6e and the mean of the last layer, frozen.

    Takes images in [-1, 1], which is what these weights were trained on.

    Raises ValueError where the weights are not there, or are not those of an Inception-v3.
    """

    SIDE = 299  # pixels
    width, whole_width = 768, 2048

    def __init__(
        self,
        *,
        weights: str,  # "torchvision" (downloaded on first use), or a local file of the same kind
    ) -> None:
        super().__init__()
        net = inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
        if torch.get_default_device().type != "meta":  # nothing can be loaded into no memory
            load_inception(net, weights)
        self.source = f"inception_v3 {weights}"  # a checkpoint of ours leaves these weights out
        children = dict(net.named_children())
        names = [n for n in children if n not in ("AuxLogits", "avgpool", "dropout", "fc")]
        cut = names.index("Mixed_6e") + 1
        self.lower = nn.Sequential(*(children[n] for n in names[:cut]))
        self.upper = nn.Sequential(*(children[n] for n in names[cut:]))

    @property
    def pretrained(self) -> list[nn.Module]:
        return [self]

    def forward(self, images: Tensor) -> Seen:
        size = (self.SIDE, self.SIDE)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        h = self.lower(images)  # (N, 768, 17, 17)
        return Seen(h.flatten(2).transpose(1, 2), self.upper(h).mean((2, 3)))


def load_inception(net: nn.Module, weights: str) -> None:
    """Of a classifier from torchvision, or from a file that holds one."""
    if weights != "torchvision" and not Path(weights).is_file():
        raise ValueError(
            f"matcher.image.weights={weights!r}: no such file; expected 'torchvision' or a file "
            "with the weights of torchvision's inception_v3"
        )
    try:
        if weights == "torchvision":
            found = Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        else:
            found = torch.load(weights, map_location="cpu", weights_only=True)
        net.load_state_dict(found)
    except Exception as error:  # no network, a broken download, another network: many kinds
        raise ValueError(
            f"matcher.image.weights={weights!r} could not be loaded ({str(error)[:300]}). Offline: "
            "name a file with the weights of torchvision's inception_v3, "
            "matcher.image.weights=FILE, or train a small encoder: damsm/tiny"
        ) from error


class Matcher(nn.Module):
    """Both sides of the DAMSM after their encoders: `look` at images, `read` a tower's `Text`."""

    def __init__(
        self,
        *,
        image: ImageEncoder,
        features: int,  # D
        project_text: bool,  # False: the tower's own states are the joint space (a trained tower)
        gammas: Sequence[float],  # gamma1, gamma2, gamma3 of the losses it is trained with
        width: int,  # of the tower's tokens
        pooled_width: int,
    ) -> None:
        super().__init__()
        if not project_text and (width, pooled_width) != (features, features):
            raise ValueError(
                f"matcher.features={features}: a text tower of {width} (tokens) and {pooled_width} "
                "(pooled) features is compared to images without a layer between, so all three "
                "have to be equal. Set matcher.features, or matcher.project_text=true"
            )
        gamma1, gamma2, gamma3 = gammas
        self.gammas = (gamma1, gamma2, gamma3)
        self.reads = (width, pooled_width)
        self.image = image
        self.regions = nn.Linear(image.width, features, bias=False)
        self.whole = nn.Linear(image.whole_width, features)
        self.words: nn.Module = nn.Identity()
        self.sentence: nn.Module = nn.Identity()
        if project_text:
            self.words = nn.Linear(width, features, bias=False)
            self.sentence = nn.Linear(pooled_width, features, bias=False)
        for layer in (self.regions, self.whole):
            nn.init.uniform_(layer.weight, -SPREAD, SPREAD)

    def look(self, images: Tensor) -> Seen:
        """Images (N, 3, H, W) in [-1, 1] to regions (N, R, D) and whole (N, D)."""
        seen = self.image(images)
        return Seen(self.regions(seen.regions), self.whole(seen.whole))

    def read(self, text: Text) -> Text:
        """Into the joint space: tokens (N, T, D), pooled (N, D)."""
        return Text(self.words(text.tokens), text.mask, self.sentence(text.pooled))

"""Rows of pictures from one prompt to another, and from one seed to another.

Noise along the great circle: White 2016, "Sampling Generative Networks". Captions in a straight
line, as Reed et al. 2016, "Generative Adversarial Text to Image Synthesis", draw theirs.

Whatever the family: a row is `paint` of noises and texts between those of its two ends.

N pictures in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.models.base import TextToImage, noise
from salon.text.base import blend
from salon.types import Text

FLAT = 1e-3  # sine of an angle at which arc and chord are the same in float32


class End(NamedTuple):
    prompt: str
    seed: int


class Row(NamedTuple):
    start: End
    stop: End


def rows(prompts: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """From each prompt to the next under the first seed, from each seed to the next under the first
    prompt.

    Raises ValueError where there is nothing to go to.
    """
    if len(prompts) < 2 and len(seeds) < 2:
        raise ValueError(
            f"interpolate goes from one prompt or seed to the next, and prompts={list(prompts)} "
            f"seeds={list(seeds)} has one of each. Give two: "
            "'prompts=[a red circle, a blue square]', or seeds=[0,1]"
        )
    texts = [Row(End(a, seeds[0]), End(b, seeds[0])) for a, b in pairwise(prompts)]
    noises = [Row(End(prompts[0], a), End(prompts[0], b)) for a, b in pairwise(seeds)]
    return texts + noises


def shares(pictures: int) -> list[float]:
    """How far along the row each picture stands: 0 and 1 are its ends.

    Raises ValueError for a row without two ends.
    """
    if not isinstance(pictures, int) or pictures < 2:
        raise ValueError(
            f"interpolate={pictures}; expected the number of pictures in a row with both its ends, "
            "at least 2: interpolate=8"
        )
    return [i / (pictures - 1) for i in range(pictures)]


@torch.no_grad()
def draw_row(model: TextToImage, row: Row, places: Sequence[float], *, batch_size: int) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] on the CPU, as `model.sample` draws the ends."""
    assert not model.training, "a model from a checkpoint is ready to sample"
    a, b = row
    ends = noise([a.seed, b.seed], model.latent_shape, model.device)  # (2, *latent_shape)
    first, last = (model.text([end.prompt]) for end in row)
    drawn = []
    for share in torch.tensor(places, device=model.device).split(batch_size):
        z = slerp(ends[:1], ends[1:], share)
        text: Text = blend(first, last, share)
        drawn.append(model.paint(z, text).float().clamp(-1, 1).cpu())
    return torch.cat(drawn)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a (1, *shape) to b (1, *shape) along the great circle; each `share` (N,) of the way.

    Normal noise in many dimensions has nearly always the same length. The straight line between
    two draws is shorter in its middle than what any model was trained on; the arc is not.
    """
    one, other, t = a.flatten(1), b.flatten(1), share[:, None]
    angle = F.cosine_similarity(one, other).clamp(-1, 1).acos()
    sine = angle.sin()
    if sine < FLAT:  # the same noise twice; two opposite ones have no one arc between them
        between = torch.lerp(one, other, t)
    else:
        between = (((1 - t) * angle).sin() / sine) * one + ((t * angle).sin() / sine) * other
    return between.unflatten(1, a.shape[1:])  # (N, *shape)

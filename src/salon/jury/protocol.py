"""How any model is judged: so many prompts of a split, one seed each, and these numbers.

N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from salon import ranks
from salon.metrics import oracle
from salon.metrics.clip_score import clip_score
from salon.metrics.distances import Distance
from salon.metrics.images import to_uint8
from salon.models.base import TextToImage
from salon.text.clip import ClipTower
from salon.types import Batch, Prompt

MakeDistance = Callable[..., Distance]  # given tower=


class JuryData(Protocol):
    """What the jury asks of a data module."""

    batch_size: int

    def has(self, split: str) -> bool: ...
    def prompts(self, split: str, limit: int) -> list[Prompt]: ...
    def batches(self, split: str, number: int) -> Sequence[Batch]: ...


class Exhibits(NamedTuple):
    """What a split offers: prompts to draw, and the real images that they describe."""

    prompts: list[Prompt]
    real: Tensor  # (N, 3, H, W) in [-1, 1], image i as prompt i describes it


def exhibits(data: JuryData, split: str, number: int) -> Exhibits:
    """The first `number` of a split, or as many whole batches as it has."""
    batches = list(data.batches(split, -(-number // data.batch_size)))
    if not batches:
        raise ValueError(
            f"the split {split!r} has fewer than {data.batch_size} samples, one batch. Lower the "
            "batch size (batch_size=N), or make the split larger"
        )
    # By key, since a sample whose picture is broken has a prompt and no image.
    known = {prompt.key: prompt for prompt in data.prompts(split, 2 * number + 1000)}
    keys = [key for batch in batches for key in batch.keys][:number]
    real = torch.cat([batch.images for batch in batches])[:number]
    return Exhibits([known[key] for key in keys], real)


def verdict(
    images: Tensor, shown: Exhibits, tower: ClipTower, make_distance: MakeDistance
) -> dict[str, float]:
    """Every number on images (N, 3, H, W) in [-1, 1], image i drawn from prompt i.

    `prompt_accuracy` stands there where the data set describes its prompts exactly, with the score
    of the real images (its ceiling) and of the same images for other prompts (its chance).
    """
    captions = [prompt.caption for prompt in shown.prompts]
    drawn, real = to_uint8(images), to_uint8(shown.real)
    device = next(tower.parameters()).device
    distance = make_distance(tower=tower)
    metric, score = distance.metric.to(device), clip_score(tower).to(device)
    for first in range(0, len(drawn), 64):
        piece = slice(first, first + 64)
        metric.update(real[piece].to(device), real=True)
        metric.update(drawn[piece].to(device), real=False)
        score.update(drawn[piece].to(device), captions[piece])
    told = {distance.name: float(metric.compute()), "clip_score": float(score.compute())}
    asked = [prompt.scene for prompt in shown.prompts]
    if all(scene is not None for scene in asked):
        told |= accuracy(images, shown.real, [scene for scene in asked if scene is not None])
    return told


def accuracy(images: Tensor, real: Tensor, asked: list[dict[str, object]]) -> dict[str, float]:
    """The share of images whose every attribute obeys the prompt, and the share by attribute."""
    told = {}
    readings = oracle.read_all(images)  # once, for what was asked and for each other's prompts
    for name, share in oracle.judge(readings, asked).items():
        told["prompt_accuracy" if name == "all" else f"prompt_accuracy/{name}"] = share
    told["prompt_accuracy_chance"] = oracle.judge(readings, oracle.derange(asked))["all"]
    told["prompt_accuracy_real"] = oracle.score(real, asked)["all"]
    return told


def draw(
    model: TextToImage,
    captions: Sequence[str],
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Image i of caption i with seed i, (N, 3, H, W) in [-1, 1] on the CPU, by all ranks."""
    seeds = range(len(captions))

    def make(number: int) -> Tensor:
        piece = slice(number * batch_size, (number + 1) * batch_size)
        return model.sample(captions[piece], seeds[piece]).cpu()

    number = -(-len(captions) // batch_size)
    pieces = []
    for piece in map(make, range(number)) if model.sharded else ranks.spread(make, number):
        pieces.append(piece)
        progress(len(piece))
    return torch.cat(pieces)


def judge(
    model: TextToImage,
    data: JuryData,
    *,
    split: str,
    number: int,
    batch_size: int,
    make_distance: MakeDistance,
) -> tuple[dict[str, float], Tensor, Exhibits]:
    """The numbers, the images they are about, and what they were drawn for; seed i for prompt i."""
    shown = exhibits(data, split, number)
    images = draw(model, [prompt.caption for prompt in shown.prompts], batch_size=batch_size)
    return verdict(images, shown, clip_of(model), make_distance), images, shown


def clip_of(model: TextToImage) -> ClipTower:
    if not isinstance(model.text, ClipTower):
        raise ValueError(
            f"the text tower is a {type(model.text).__name__}, which sees no images; the jury "
            "needs a CLIP tower: text=clip/tiny or another text=clip/..."
        )
    return model.text

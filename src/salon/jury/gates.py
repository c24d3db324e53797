"""What a stage must show before anything is built on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from salon.jury.protocol import Exhibits, JuryData, exhibits
from salon.metrics import oracle


class Gate(NamedTuple):
    name: str
    value: float
    minimum: float

    @property
    def passed(self) -> bool:
        return self.value >= self.minimum

    def __str__(self) -> str:
        found = f"{self.name} is {self.value:.3f}, at least {self.minimum} is wanted"
        if self.passed:
            return f"passed: {found}"
        return (
            f"FAILED by {self.minimum - self.value:.3f}: {found}. What is built on this stage "
            "cannot be better; train it longer (budget.batches) or make it larger"
        )


def readable(
    *, module: Any, data: JuryData, split: str, images: int, minimum: float
) -> Gate | None:
    """The share of an autoencoder's reconstructions in which the oracle still reads the scene.

    A blurred autoencoder caps whatever is built on it. None where the data set has no exact
    descriptions to read against.
    """
    shown = _shown(data, split, images)
    asked = [prompt.scene for prompt in shown.prompts]
    if any(scene is None for scene in asked):
        return None
    with torch.no_grad():
        pieces = [module.reconstruct(x.to(module.device)).cpu() for x in shown.real.split(64)]
    score = oracle.score(torch.cat(pieces), [scene for scene in asked if scene is not None])
    return Gate("share of readable reconstructions", score["all"], minimum)


def matching(*, module: Any, data: JuryData, split: str, images: int, minimum: float) -> Gate:
    """A DAMSM's R-precision: how often an image's own caption wins among 99 others."""
    shown = _shown(data, split, images)
    found = module.precision(shown.real, [prompt.caption for prompt in shown.prompts])
    return Gate("R-precision", float(found.precision), minimum)


def retrieval(*, module: Any, data: JuryData, split: str, images: int, minimum: float) -> Gate:
    """A text tower's image-to-text R@1 among prompts that leave no attribute open."""
    shown = _shown(data, split, images)
    captions = [prompt.caption for prompt in shown.prompts]
    with torch.no_grad():
        pictures = torch.cat(
            [module.tower.encode_images(x.to(module.device)) for x in shown.real.split(64)]
        )
        pooled = module.tower.encode(captions).pooled
    unit = torch.nn.functional.normalize
    best = (unit(pictures, dim=-1) @ unit(pooled, dim=-1).T).argmax(1).tolist()
    # A description that says the same of another image is right too.
    right = [shown.prompts[i].scene or captions[i] for i in range(len(captions))]
    hits = sum(right[i] == right[j] for i, j in enumerate(best))
    return Gate("image-to-text R@1", hits / len(best), minimum)


def _shown(data: JuryData, split: str, images: int) -> Exhibits:
    """Of the validation split where the data set has no other."""
    return exhibits(data, split if data.has(split) else "val", images)

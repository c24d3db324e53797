"""The numbers on pictures that were drawn for a split's prompts: each with its interval.

    exactly       what the oracle reads in each picture, attribute by attribute        shares
    in features   Frechet and kernel distance, density and coverage, variety, copies    sets
    in CLIP       the caption's score, and whether it is found among others             means

Shares have Wilson's interval, means over prompts a percentile bootstrap of prompts, KID its own
standard error. A Frechet distance has none: resampling pictures doubles its bias
(`salon.metrics.intervals`), so several seeds have to tell.

N images, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.jury.record import Number
from salon.metrics import copies as copied
from salon.metrics import oracle
from salon.metrics.attributes import verdict
from salon.metrics.diversity import vendi
from salon.metrics.frechet import frechet, frechet_infinity
from salon.metrics.images import to_uint8
from salon.metrics.intervals import bootstrap_mean, wilson
from salon.metrics.kernel import kid
from salon.metrics.manifold import density_coverage
from salon.metrics.oracle import Reading
from salon.metrics.retrieval import ranked_first
from salon.text.clip import ClipTower

CONFIDENCE, Z = 0.95, 1.96
NEIGHBOURS = 5  # of density and coverage (Naeem et al. 2020)
DISTRACTORS = 99  # of R-precision (Xu et al. 2018)
DRAWS = 1000  # of a bootstrap
ALARMS = 0.01  # share of fresh pictures that the copy test takes for copies
POINTS = 15  # of the line to infinitely many pictures (Chong & Forsyth 2020)
SUBSETS, SUBSET = 100, 1000  # of KID (Binkowski et al. 2018)
VARIED = 2000  # pictures at most whose variety is counted
SEED = 0  # of subsets and bootstraps

Numbers = dict[str, Number]


class Copied(NamedTuple):
    """A drawn picture and the training picture that it is too near to."""

    made: int
    train: int
    ratio: float


def obeyed(readings: Sequence[Reading], asked: Sequence[dict[str, Any]]) -> Numbers:
    """Shares of pictures that show what was asked; `prompt_accuracy` is all of it, beside the score
    of the same pictures for each other's prompts (`prompt_accuracy_chance`)."""
    told = {}
    for name, rate in verdict(readings, asked).items():
        if name == "malformed":
            told["malformed"] = share(rate.held, rate.of)
        else:
            plain = "prompt_accuracy" if name == "all" else f"prompt_accuracy/{name}"
            told[plain] = share(rate.held, rate.of)
    if len(asked) > 1:
        shuffled = oracle.judge(readings, oracle.derange(list(asked)))["all"]
        told["prompt_accuracy_chance"] = share(round(shuffled * len(asked)), len(asked))
    return told


def distances(real: Tensor, made: Tensor) -> Numbers:
    """Of features (N, E) of real and drawn pictures."""
    count = min(len(real), len(made))
    told = {"fd": Number(frechet(real, made), n=count)}
    least = max(2, len(made) // 4)
    if len(made) - least >= POINTS:
        found = frechet_infinity(real, made, points=POINTS, least=least, seed=SEED)
        told["fd_inf"] = Number(found.value, n=count)
    if count > 2 * NEIGHBOURS:
        cover = density_coverage(real, made, neighbours=NEIGHBOURS)
        told["density"] = Number(float(cover.density), n=count)
        told["coverage"] = share(round(float(cover.coverage) * len(real)), len(real))
        size = min(SUBSET, count // 2)
        kernel = kid(real, made, subsets=SUBSETS, subset_size=size, seed=SEED)
        half = Z * kernel.error
        told["kid"] = Number(kernel.value, kernel.value - half, kernel.value + half, count)
    told["vendi"] = Number(vendi(made, most=VARIED, seed=SEED), n=min(VARIED, len(made)))
    return told


@torch.no_grad()
def aligned(images: Tensor, captions: Sequence[str], tower: ClipTower) -> Numbers:
    """CLIP score (Hessel et al. 2021) and R-precision, in the tower's joint space.

    A run's own tower also told the model what to draw, and so flatters it; a tower that no model
    was trained with is the one to publish.
    """
    device = next(tower.parameters()).device
    seen, said = [], []
    for first in range(0, len(images), 64):
        piece = slice(first, first + 64)
        shown = to_uint8(images[piece]).to(device).float() / 127.5 - 1
        seen.append(F.normalize(tower.encode_images(shown).float(), dim=1).cpu())
        said.append(F.normalize(tower(list(captions[piece])).pooled.float(), dim=1).cpu())
    pictures, texts = torch.cat(seen), torch.cat(said)
    scores = 100 * (pictures * texts).sum(1).clamp(min=0)
    told = {"clip_score": mean(scores)}
    if len(set(captions)) > DISTRACTORS:
        found = ranked_first(
            pictures, texts, texts=captions, distractors=DISTRACTORS, hard=None, seed=SEED
        )
        told["r_precision"] = mean(found)
    return told


def copying(train: Tensor, test: Tensor, made: Tensor) -> tuple[Numbers, list[Copied]]:
    """Of features: the share of copies among the drawn, and which they are, the closest first.

    Nothing where there are too few held-out pictures to calibrate on.
    """
    if len(test) < 1 / ALARMS:
        return {}, []
    vectors = [copied.directions(x) for x in (train, test, made)]
    found = copied.copies(*vectors, alarms=ALARMS, seed=SEED)
    pairs = zip(found.made.tolist(), found.train.tolist(), strict=True)
    return (
        {"copies": share(len(found.made), len(made))},
        [Copied(i, j, float(found.ratio[i])) for i, j in pairs],
    )


def share(held: int, of: int) -> Number:
    return Number(*wilson(held, of, confidence=CONFIDENCE), of)


def mean(values: Tensor) -> Number:
    if len(values) < 2:
        return Number(float(values.mean()), n=len(values))
    found = bootstrap_mean(values, confidence=CONFIDENCE, draws=DRAWS, seed=SEED)
    return Number(*found, len(values))

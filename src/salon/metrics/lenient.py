"""The learned reader's answer as a reading, so that the jury can ask it what it asks the oracle.

It forgives blur and noise that the analytic oracle refuses, and accepts some pictures that no scene
makes: a second column, beside the oracle's.

N images, K channels, G cells along a side, as in `salon.shapes.cells`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from salon.metrics.oracle import Reading, Seen
from salon.shapes.cells import CELLS, CHANNELS, OCCUPIED, WIDTH, WORDS

Array = NDArray[np.float64]

# Cells of a region that is more than a speck; the smallest object covers eight.
SPECK = 2.0
# Mean probability of each word over a region, up to which it is malformed: no answer has more than
# half.
SURE = 0.5
BATCH = 256  # images that are read at once


def read_all(reader: Callable[[Tensor], Tensor], images: Tensor) -> list[Reading]:
    """The scenes in images (N, 3, H, W) in [-1, 1], as the logits of `reader` have them."""
    with torch.no_grad():
        return [one for piece in images.split(BATCH) for one in decode(reader(piece))]


def decode(logits: Tensor) -> list[Reading]:
    """Of logits (N, K, G, G).

    Raises ValueError for another shape.
    """
    if logits.shape[1:] != (WIDTH, CELLS, CELLS):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)}; expected (N, {WIDTH}, {CELLS}, {CELLS}), as a "
            "reader of this world gives them"
        )
    shares = torch.cat(
        [
            part.sigmoid() if word == OCCUPIED else part.softmax(1)
            for word, part in ((word, logits[:, CHANNELS[word]].double()) for word in WORDS)
        ],
        dim=1,
    )
    return [_reading(one) for one in shares.detach().cpu().numpy()]


def _reading(shares: Array) -> Reading:
    occupied = shares[CHANNELS[OCCUPIED]][0]  # (G, G)
    background, sure = _word("background", shares, 1 - occupied)
    regions, number = ndimage.label(occupied > 0.5)
    masks = [regions == region for region in range(1, number + 1)]
    # The rim's cells are covered by less than half, and count for the centroid; what two rims
    # share counts half for each.
    rims = [ndimage.binary_dilation(m, np.ones((3, 3))) & ((regions == 0) | m) for m in masks]
    claims = np.maximum(np.sum(rims, axis=0), 1)
    objects, malformed = [], 0
    for inside, rim in zip(masks, rims, strict=True):
        if (occupied * inside).sum() < SPECK:
            continue
        told = [_word(word, shares, occupied * inside) for word in ("shape", "color", "size")]
        fit = min(share for _, share in told)
        if fit <= SURE:
            malformed += 1
            continue
        weight = occupied * rim / claims
        at = (np.arange(CELLS) + 0.5) / CELLS
        x, y = (float(weight.sum(axis) @ at / weight.sum()) for axis in (0, 1))
        shape, color, size = (word for word, _ in told)
        objects.append(Seen(shape, color, size, x, y, fit))
    return Reading(background if sure > SURE else None, tuple(objects), malformed)


def _word(attribute: str, shares: Array, weight: Array) -> tuple[str, float]:
    """The likeliest value over the weighted cells, and its mean probability."""
    mean = (shares[CHANNELS[attribute]] * weight).sum((1, 2)) / max(float(weight.sum()), 1e-9)
    best = int(mean.argmax())
    return WORDS[attribute][best], float(mean[best])


class Agreement(NamedTuple):
    """Shares of pictures."""

    same: float  # both read the same scene: number, kinds, sizes and background
    both_right: float  # everything that was asked, by both
    one_right: float  # by one of the two


def agreement(
    first: Sequence[Reading], second: Sequence[Reading], right: Sequence[tuple[bool, bool]]
) -> Agreement:
    """Of two readers' readings of the same pictures; `right` is whether each was."""
    same = [_bare(a) == _bare(b) for a, b in zip(first, second, strict=True)]
    both, one = (sum(sum(pair) == n for pair in right) / len(right) for n in (2, 1))
    return Agreement(sum(same) / len(same), both, one)


def _bare(reading: Reading) -> tuple[str | None, bool, list[tuple[str, str, str]]]:
    kinds = sorted((seen.shape, seen.color, seen.size) for seen in reading.objects)
    return reading.background, reading.malformed > 0, kinds

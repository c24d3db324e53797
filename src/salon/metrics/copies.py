"""Does a model redraw its training images? The test set, which it never saw, is the control.

For each generated image the distance to the nearest training image over that to the nearest test
image: about 1 for a fresh draw however rare its subject, 0 for a copy. Test images, each against
the others, say how small the ratio becomes by chance; the threshold lets a given share of them
through. A copy that is also in the test set is none: it has nothing of the training set.

Run it in pixels and in features: pixels miss a copy that is shifted, features may miss nothing or
what the extractor does not see.

N training, T test and M generated vectors of E features or pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.metrics.images import to_uint8
from salon.metrics.sets import check, nearest, subset


class Copies(NamedTuple):
    share: float  # of the generated images that are copies; a fresh set has up to `alarms`
    made: Tensor  # (C,) indices of the copies, the closest first
    train: Tensor  # (C,) indices of what they are copies of
    ratio: Tensor  # (M,) nearest training distance over nearest test distance
    threshold: float  # a ratio up to it is a copy's
    gap: float  # mean nearest distance to training less that to test images; below 0: too near


def pixels(images: Tensor) -> Tensor:
    """(N, 3, R, R) in [-1, 1] -> (N, 3 R R) uint8 as displayed, for `copies`."""
    return to_uint8(images).flatten(1)


def directions(features: Tensor) -> Tensor:
    """(N, E) -> (N, E) of length 1: their distances order as the cosines do, for `copies`."""
    return F.normalize(features.double(), dim=1)


def copies(train: Tensor, test: Tensor, made: Tensor, *, alarms: float, seed: int) -> Copies:
    """Of vectors (N, E), (T, E) and (M, E).

    `alarms` is the share of fresh images that the threshold takes for copies; it needs a test set
    of at least 1 / alarms - 1 images. The gap is to equally many training and test images, the
    larger set drawn from; divide it by that of another model, for it has the vectors' unit.
    """
    check(train=train, test=test, made=made, least=1)
    allowed = _allowed(len(test), alarms)
    # The nearest but one of the test images, as each test image is its own nearest.
    control = _ratio(_to(test, train)[0], nearest(test, test, count=2).distance[:, 1])
    threshold = float(control.sort().values[allowed - 1])
    if threshold == 0:
        raise ValueError(
            f"test: {int((control == 0).sum())} of {len(test)} vectors are also in train, more "
            f"than alarms={alarms} allows for: a control that was trained on tells nothing; make "
            "the splits disjoint"
        )
    to_train, source = _to(made, train)
    to_test, _ = _to(made, test)
    ratio = _ratio(to_train, to_test)
    found = (ratio <= threshold).nonzero()[:, 0]
    found = found[ratio[found].argsort(stable=True)]
    return Copies(
        len(found) / len(made),
        found,
        source[found],
        ratio,
        threshold,
        _gap(train, test, made, seed),
    )


def _allowed(tested: int, alarms: float) -> int:
    """How many of the test images may fall to the threshold: with rank k of T an exchangeable
    fresh one does with probability k / (T + 1), as in conformal prediction."""
    allowed = int(alarms * (tested + 1) + 1e-9) if 0 < alarms < 1 else 0
    if allowed < 1 or tested < 2:
        raise ValueError(
            f"alarms={alarms} with {tested} test images: a share between 1 / (T + 1) and 1 of T "
            "test images was expected; hold out more images or raise alarms"
        )
    return allowed


def _to(ones: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    distance, indices = nearest(ones, others, count=1)
    return distance[:, 0], indices[:, 0]


def _ratio(to_train: Tensor, to_test: Tensor) -> Tensor:
    # 0 / 0: in both sets, so no copy of the one.
    return torch.where((to_train == 0) & (to_test == 0), 1.0, to_train / to_test)


def _gap(train: Tensor, test: Tensor, made: Tensor, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    size = min(len(train), len(test))
    means = [_to(made, subset(real, size, generator))[0].mean() for real in (train, test)]
    return float(means[0] - means[1])

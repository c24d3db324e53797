"""How far a number may be off.

  wilson              a share of independent trials                   Wilson 1927
  bootstrap_mean      a mean over prompts                             Efron 1979, percentiles
  paired_difference   two models on the same prompts                  the same, prompts as clusters
  t_interval          a mean over training or sampling seeds          Student 1908

Three variances add up and are not each other's: of training seeds, mostly the largest, of sampling
seeds, and of the prompts or images measured.

There is no bootstrap of a Frechet distance, nor of another distance of distributions, for it is
invalid: a set drawn with replacement from N vectors is less diverse than they are, so each draw has
the bias of about N / 2 vectors, and the interval can exclude the distance itself. For an interval
of those take t_interval over sets generated from several seeds, or kid, which brings its error.

P prompts, K images of each, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Difference(NamedTuple):
    value: float  # of the first model's mean less the second's
    low: float
    high: float
    p: float  # two-sided, of no difference; below 1 - confidence where the interval excludes 0


def wilson(hits: int, count: int, *, confidence: float) -> Interval:
    """Of hits / count; unlike the normal interval it has a width at 0 and 1, and stays within."""
    tail = _tail(confidence)
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"hits={hits} of count={count}: 0 <= hits <= count, count > 0 expected")
    z2 = float(special.ndtri(tail)) ** 2
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (z2 * share * (1 - share) / count + z2**2 / (4 * count**2)) ** 0.5 / (1 + z2 / count)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def t_interval(values: Sequence[float] | Tensor, *, confidence: float) -> Interval:
    """Of the mean of one number a seed: for few seeds, of which each is an independent run."""
    tail = _tail(confidence)
    scores = _scores("values", values, columns=False)
    mean, error = scores.mean(), scores.std() / len(scores) ** 0.5
    half = -float(special.stdtrit(len(scores) - 1, tail)) * float(error)
    return Interval(float(mean), float(mean) - half, float(mean) + half)


def bootstrap_mean(
    values: Sequence[float] | Tensor, *, confidence: float, draws: int, seed: int
) -> Interval:
    """Of the mean of scores (P,), or (P, K) with K images a prompt: it is prompts that are drawn,
    for images of one prompt resemble each other."""
    scores = _scores("values", values, columns=True)
    low, high = _percentiles(_resampled(scores, draws, seed), confidence)
    return Interval(float(scores.mean()), low, high)


def paired_difference(
    one: Sequence[float] | Tensor,
    other: Sequence[float] | Tensor,
    *,
    confidence: float,
    draws: int,
    seed: int,
) -> Difference:
    """Of two models' scores (P,) or (P, K) on the same prompts in the same order; K may differ.

    Both models' scores of a prompt are drawn together, so what makes a prompt hard for both
    cancels. No p is below 2 / (B + 1).
    """
    first, second = _scores("one", one, columns=True), _scores("other", other, columns=True)
    if len(first) != len(second):
        raise ValueError(
            f"one has {len(first)} prompts and other {len(second)}: the same prompts in the same "
            "order were expected"
        )
    gaps = first - second  # (P,)
    means = _resampled(gaps, draws, seed)  # (B,)
    low, high = _percentiles(means, confidence)
    # The smallest 1 - confidence whose interval excludes 0; one more, for the data themselves.
    crossing = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (crossing + 1) / (draws + 1))
    return Difference(float(gaps.mean()), low, high, p)


def _resampled(scores: Tensor, draws: int, seed: int) -> Tensor:
    """(B,) means of P scores each, drawn with replacement."""
    if draws < 1:
        raise ValueError(f"draws={draws}: at least 1 was expected, and 1,000 for a percentile")
    generator = torch.Generator().manual_seed(seed)
    count = len(scores)
    means = [
        scores[torch.randint(count, (count,), generator=generator)].mean() for _ in range(draws)
    ]
    return torch.stack(means)


def _percentiles(means: Tensor, confidence: float) -> tuple[float, float]:
    tail = _tail(confidence)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: between 0 and 1 was expected, such as 0.95")
    return (1 - confidence) / 2


def _scores(name: str, values: Sequence[float] | Tensor, *, columns: bool) -> Tensor:
    """(P,) float64, the means over the images of each prompt."""
    scores = torch.as_tensor(values, dtype=torch.float64).cpu()
    if columns and scores.ndim == 2 and scores.shape[1] > 0:
        scores = scores.mean(1)
    if scores.ndim != 1 or len(scores) < 2 or not scores.isfinite().all():
        shape = tuple(torch.as_tensor(values).shape)
        raise ValueError(
            f"{name} is of shape {shape}{'' if scores.isfinite().all() else ' and not finite'}, "
            f"but {'(P,) or (P, K)' if columns else '(N,)'} of at least 2 finite scores was "
            "expected"
        )
    return scores

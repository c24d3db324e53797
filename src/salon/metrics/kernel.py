"""Kernel distance between two sets of features: unbiased, so also for few images.

MMD^2 under the kernel k(x, y) = (x.y / E + 1)^3, Binkowski et al. 2018: KID where the features are
Inception's. Unbiased, it is about 0 for equal distributions and negative half of the time.

N real and M generated vectors of E features. In float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salon.metrics.sets import Estimate, blocks, check, subset


def kid(real: Tensor, made: Tensor, *, subsets: int, subset_size: int, seed: int) -> Estimate:
    """Mean of MMD^2 over pairs of subsets, each without replacement, and its standard error.

    The subsets share their vectors, so their spread over sqrt(subsets) would promise ever more for
    the same vectors. The error is that of the delete-d jackknife (Shao & Wu 1989), for another
    min(N, M) vectors, with what a finite number of subsets adds.
    """
    check(real=real, made=made, least=3)
    fewest = min(len(real), len(made))
    if subsets < 2 or not 2 <= subset_size < fewest:
        raise ValueError(
            f"subsets={subsets}, subset_size={subset_size} of {len(real)} real and {len(made)} "
            f"generated vectors: at least 2 subsets of 2 to {fewest - 1} vectors were expected; "
            "mmd takes them all at once"
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [
            mmd(subset(real, subset_size, generator), subset(made, subset_size, generator))
            for _ in range(subsets)
        ],
        dtype=torch.float64,
    )
    share = subset_size / (fewest - subset_size) + 1 / subsets
    return Estimate(float(values.mean()), float(values.std() * share**0.5))


def mmd(real: Tensor, made: Tensor) -> float:
    """MMD^2 over all pairs of features (N, E) and (M, E), none with itself."""
    check(real=real, made=made, least=2)
    within = _within(real) + _within(made)
    return within - 2 * _sum(real, made) / (len(real) * len(made))


def _within(vectors: Tensor) -> float:
    itself = sum(float((block.square().mean(1) + 1).pow(3).sum()) for _, block in blocks(vectors))
    return (_sum(vectors, vectors) - itself) / (len(vectors) * (len(vectors) - 1))


def _sum(ones: Tensor, others: Tensor) -> float:
    width = ones.shape[1]
    return sum(
        float((one @ other.T / width + 1).pow(3).sum())
        for _, one in blocks(ones)
        for _, other in blocks(others)
    )

"""What the metrics on sets of features share: checks, draws and distances in bounded memory.

N, M vectors of E features; K nearest. Distances are Euclidean and in float64. They are taken block
by block, so that memory is bounded whatever N and M, and the size of a block changes no result
beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # of a block of distances, so 8 MB
ELEMENTS = 2**23  # of a block of vectors in float64, so 64 MB

# What rounding moves a squared distance by, as a share of the squared lengths of its ends.
ROUNDING = 1e-12


class Estimate(NamedTuple):
    value: float
    error: float  # standard error of the value


class Nearest(NamedTuple):
    distance: Tensor  # (N, K) float64, ascending
    indices: Tensor  # (N, K) into the others


def check(*, least: int, **sets: Tensor) -> None:
    """ValueError unless all are finite, (N, E) with the same E, and hold `least` vectors."""
    widths = set()
    for name, vectors in sets.items():
        if vectors.ndim != 2 or len(vectors) < least or vectors.shape[1] == 0:
            raise ValueError(
                f"{name} is of shape {tuple(vectors.shape)}, but (N, E) with N of at least {least} "
                "was expected: one row of features an image"
            )
        if not vectors.isfinite().all():
            raise ValueError(
                f"{name} holds NaN or infinity, which has no distance: extract the features in "
                "float32, outside of autocast"
            )
        widths.add(vectors.shape[1])
    if len(widths) > 1:
        raise ValueError(
            f"{', '.join(sets)} have {sorted(widths)} features: the same were expected, from one "
            "extractor"
        )


def subset(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` of the vectors, without replacement; the generator is the CPU's on any device."""
    chosen = torch.randperm(len(vectors), generator=generator)[:size]
    return vectors[chosen.to(vectors.device)]


def blocks(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where each block starts, and its vectors in float64."""
    rows = min(ROWS, max(1, ELEMENTS // vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield start, vectors[start : start + rows].double()


def squared(ones: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (N, M) of float64 vectors, and by how much rounding may have moved each.

    By a product of matrices, ten times as fast as by differences.
    """
    lengths = ones.square().sum(1)[:, None] + others.square().sum(1)  # (N, M)
    return lengths - 2 * ones @ others.T, ROUNDING * lengths


def nearest(ones: Tensor, others: Tensor, *, count: int) -> Nearest:
    """The `count` nearest others of each; a vector that stands among the others is its own."""
    center = others.mean(0, dtype=torch.float64)  # distances stay, and less is lost to rounding
    found = [_nearest(block, others, center, count) for _, block in blocks(ones)]
    distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Nearest(distance, index)


def _nearest(ones: Tensor, others: Tensor, center: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best = ones.new_full((len(ones), 0), 0)
    index = torch.zeros_like(best, dtype=torch.long)
    for start, block in blocks(others):
        gaps, _ = squared(ones - center, block - center)  # (N, M)
        here = torch.arange(start, start + len(block), device=ones.device).expand_as(gaps)
        best, index = torch.cat([best, gaps], 1), torch.cat([index, here], 1)
        best, kept = best.topk(min(count, best.shape[1]), largest=False)
        index = index.gather(1, kept)
    # By differences now, so that equal vectors are at distance 0 and not at the root of rounding.
    columns = [(ones - others[column]).norm(dim=1) for column in index.T]
    distance, order = torch.stack(columns, 1).sort(dim=1, stable=True)  # (N, K)
    return distance, index.gather(1, order)

"""Fidelity and diversity apart, by balls around the vectors that reach to their K-th neighbour.

  density, coverage: Naeem et al. 2020; real balls alone, so no generated outlier widens them
  precision, recall: Kynkaanniemi et al. 2019

They depend on N, M and K: give them beside those of one real set against another.
N real and M generated vectors of E features, K neighbours. What lies within rounding of a ball's
surface is on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from salon.metrics.sets import blocks, check, nearest, squared


class Cover(NamedTuple):
    density: float  # from 0; 1 is expected of another real set, above 1 of crowds near modes
    coverage: float  # 0 to 1; 1 - 2^-K is expected of another real set of N = M vectors


class Overlap(NamedTuple):
    precision: float  # 0 to 1, share of the generated in a real ball
    recall: float  # 0 to 1, share of the real in a generated ball


def density_coverage(real: Tensor, made: Tensor, *, neighbours: int) -> Cover:
    """Of features (N, E) and (M, E), N > neighbours. The balls are open, as the authors have them:
    a set against itself has density 1; a vector with K doubles has an empty ball."""
    _check(neighbours, len(real), real=real, made=made)
    held = _inside(made, real, _radii(real, neighbours), closed=False)
    density = float(held.of_ball.sum()) / (neighbours * len(made))
    return Cover(density, float((held.of_ball > 0).double().mean()))


def precision_recall(real: Tensor, made: Tensor, *, neighbours: int) -> Overlap:
    """Of features (N, E) and (M, E), N and M > neighbours; the balls are closed."""
    _check(neighbours, min(len(real), len(made)), real=real, made=made)
    precision = _inside(made, real, _radii(real, neighbours), closed=True)
    recall = _inside(real, made, _radii(made, neighbours), closed=True)
    return Overlap(
        float((precision.of_vector > 0).double().mean()),
        float((recall.of_vector > 0).double().mean()),
    )


class _Held(NamedTuple):
    of_vector: Tensor  # (N,) balls that each vector lies in
    of_ball: Tensor  # (M,) vectors that lie in each ball


def _inside(vectors: Tensor, centers: Tensor, radii: Tensor, *, closed: bool) -> _Held:
    middle = centers.mean(0, dtype=torch.float64)
    of_vector = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    of_ball = torch.zeros(len(centers), dtype=torch.long, device=vectors.device)
    for start, ones in blocks(vectors):
        for first, others in blocks(centers):
            gaps, rounding = squared(ones - middle, others - middle)  # (N, M)
            reach = radii[first : first + len(others)].square() - gaps
            inside = reach >= -rounding if closed else reach > rounding
            of_vector[start : start + len(ones)] += inside.sum(1)
            of_ball[first : first + len(others)] += inside.sum(0)
    return _Held(of_vector, of_ball)


def _radii(vectors: Tensor, neighbours: int) -> Tensor:
    """(N,) distance of each to its K-th neighbour, itself not counted."""
    return nearest(vectors, vectors, count=neighbours + 1).distance[:, -1]


def _check(neighbours: int, fewest: int, **sets: Tensor) -> None:
    check(least=1, **sets)
    if not 1 <= neighbours < fewest:
        raise ValueError(
            f"neighbours={neighbours} of {fewest} vectors: from 1 to {fewest - 1} was expected, "
            "without the vector itself; extract more features or lower neighbours"
        )

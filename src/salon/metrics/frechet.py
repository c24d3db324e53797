"""The Frechet distance between two sets of features, whatever extractor they come from.

  d^2 = |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2))         Heusel et al. 2017
  FD_infinity: the intercept of d^2 over 1/N                        Chong & Forsyth 2020

All in float64: covariances in float32 are off by 0.4 at 2048 features. The trace of the root is

  the nuclear norm of A B^T, A and B the centred features / sqrt(N - 1), where min(N, M) < E:
  the sum of the roots of the eigenvalues of S_r^(1/2) S_g S_r^(1/2) elsewhere.

With fewer vectors than features a covariance is singular; the roots of its zero eigenvalues are
those of rounding, 1e-8 where it is 1e-16, and E^3 is paid for what N^2 E gives. So `Moments`, which
forget the features, are for N, M >= E: below that, keep the features and call `frechet`.

N real and M generated vectors of E features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from salon.metrics.sets import Estimate, check, subset


class Moments(NamedTuple):
    """Of a set of features; those of a real set need be computed but once."""

    size: int
    mean: Tensor  # (E,) float64
    scatter: Tensor  # (E, E) float64, the sum of the outer products about the mean

    @property
    def cov(self) -> Tensor:
        return self.scatter / (self.size - 1)

    def merged(self, other: Moments) -> Moments:
        """Of both sets together, in batches or over ranks: Chan, Golub & LeVeque 1983."""
        size = self.size + other.size
        gap = other.mean - self.mean
        between = torch.outer(gap, gap) * (self.size * other.size / size)
        mean = self.mean + gap * (other.size / size)
        return Moments(size, mean, self.scatter + other.scatter + between)


def moments(features: Tensor) -> Moments:
    """Of features (N, E); a single one has a mean, and no covariance before it is merged."""
    check(features=features, least=1)
    mean, centred = _centred(features)
    return Moments(len(features), mean, centred.T @ centred)


def frechet(real: Tensor, made: Tensor) -> float:
    """The squared distance of features (N, E) and (M, E), from 0.

    Rounding alone moves it below 0, by less than 1e-8 of tr(S_r + S_g) for identical sets.
    Its bias is upwards and falls with 1/N and 1/M: N and M are part of the result.
    """
    check(real=real, made=made, least=2)
    if min(len(real), len(made)) >= real.shape[1]:
        return frechet_of_moments(moments(real), moments(made))
    mean, centred = _centred(real)
    return _distance(mean, centred / (len(real) - 1) ** 0.5, made)


def frechet_of_moments(real: Moments, made: Moments) -> float:
    """`frechet` where the features are gone; of at least E vectors each."""
    for name, given in (("real", real), ("made", made)):
        if given.size < max(2, len(given.mean)):
            raise ValueError(
                f"{name} are moments of {given.size} vectors of {len(given.mean)} features: at "
                "least as many vectors as features were expected, for the covariance is singular; "
                "call frechet with the features themselves"
            )
    root = _root(real.cov)
    overlap = _trace_of_root(root @ made.cov @ root)
    gap = (real.mean - made.mean).square().sum()
    return float(gap + real.cov.trace() + made.cov.trace() - 2 * overlap)


def frechet_infinity(
    real: Tensor,
    made: Tensor,
    *,
    points: int,  # subsets of the generated vectors, evenly spaced in size up to all of them
    least: int,  # vectors in the smallest subset
    seed: int,
) -> Estimate:
    """The distance for infinitely many generated vectors, as if the real ones were all there are.

    The finite real set biases it still. The error is that of the fitted line; the subsets share
    their vectors, so what another M generated vectors would give differs by more, for Gaussians by
    twice as much: that takes several sets, from several seeds.
    """
    check(real=real, made=made, least=2)
    if points < 3 or least < 2 or len(made) - least < points - 1:
        raise ValueError(
            f"points={points}, least={least} of {len(made)} generated vectors: at least 3 points "
            "were expected, of different sizes from at least 2 vectors; generate more or lower "
            "points or least"
        )
    mean, root = _centred(real)
    root = root / (len(real) - 1) ** 0.5  # (N, E)
    if len(real) >= real.shape[1]:
        root = _root(root.T @ root)  # (E, E), once for all subsets
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(least, len(made), points, dtype=torch.float64).round().long().tolist()
    distances = [_distance(mean, root, subset(made, size, generator)) for size in sizes]
    return _intercept(
        1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    )


def _intercept(x: Tensor, y: Tensor) -> Estimate:
    """Of the line through (x, y) by least squares, with its standard error."""
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    value = y.mean() - slope * x.mean()
    residual = (y - value - slope * x).square().sum() / (len(x) - 2)
    error = (residual * (1 / len(x) + x.mean().square() / spread)).sqrt()
    return Estimate(float(value), float(error))


def _distance(mean: Tensor, root: Tensor, made: Tensor) -> float:
    """From a real set, by its mean and any root (K, E) with root^T root = S_r, to features."""
    other, centred = _centred(made)
    centred = centred / (len(made) - 1) ** 0.5  # (M, E)
    if min(len(made), len(root)) < len(mean):
        overlap = torch.linalg.svdvals(root @ centred.T).sum()  # of (K, M)
    else:
        overlap = _trace_of_root(root @ (centred.T @ centred) @ root.T)
    gap = (mean - other).square().sum()
    return float(gap + root.square().sum() + centred.square().sum() - 2 * overlap)


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(0)
    return mean, features - mean


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _trace_of_root(product: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()

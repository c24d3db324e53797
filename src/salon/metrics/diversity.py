"""How many different images a set holds, without a reference: the Vendi score.

  exp(-sum_i l_i log l_i), l the eigenvalues of K / N, K the cosines     Friedman & Dieng 2023

N vectors of E features, U used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.metrics.sets import check, subset


def vendi(features: Tensor, *, most: int, seed: int) -> float:
    """Of features (N, E), in [1, min(U, E)]: 1 where all point one way, U where all are orthogonal.

    It grows with U, so `most` is part of the result: from more vectors so many are drawn.
    """
    check(features=features, least=1)
    if most < 1:
        raise ValueError(f"most={most}: at least 1 vector was expected")
    if len(features) > most:
        features = subset(features, most, torch.Generator().manual_seed(seed))
    if (features == 0).all(1).any():
        raise ValueError(
            "features hold a vector of zeros, which has no direction: expected are nonzero "
            "features, such as those before a ReLU"
        )
    unit = F.normalize(features.double(), dim=1)  # (U, E)
    # Both products have the same nonzero eigenvalues: the smaller one is taken.
    product = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    shares = torch.linalg.eigvalsh(product / len(unit)).clamp(min=0)
    return float(torch.special.entr(shares).sum().exp())

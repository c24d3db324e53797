"""The Kullback-Leibler divergence from a diagonal Gaussian to the standard normal.

N samples, any further dimensions are latent.
"""

import torch
from torch import Tensor


def kl(moments: tuple[Tensor, Tensor]) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), Kingma & Welling 2014, appendix B, summed over a sample.

    The moments are (mean, logvar), each (N, ...).
    """
    mean, logvar = moments
    # expm1 keeps the digits of exp(logvar) - 1 near logvar = 0, where training ends up.
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar).flatten(1).sum(1)  # (N,)

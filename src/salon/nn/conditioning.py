"""Conditioning augmentation: a Gaussian around each caption, from which a GAN's condition is drawn.

StackGAN, Zhang et al. 2017, section 3.2. The published codes differ in how the pooled text becomes
the moments, and each is kept as it is:

    glu          StackGAN-v2 and AttnGAN: linear, gated linear unit -> mean, logvar
    relu         StackGAN in PyTorch: linear, ReLU -> mean, logvar; so sigma is never below 1
    log_sigma    StackGAN in TensorFlow: linear, leaky ReLU -> mean, log sigma; the noise is
                 truncated at two standard deviations

N captions, W the width of the pooled text, C dimensions of the condition.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.nn.autoencoder import Moments, sample

# How many features the linear map has for each dimension, and what makes them 2 C.
KINDS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "glu": (4, F.glu),
    "relu": (2, F.relu),
    "log_sigma": (2, partial(F.leaky_relu, negative_slope=0.2)),
}
TRUNCATION = 2.0  # standard deviations, of TensorFlow's truncated normal


def truncated(eps: Tensor) -> Tensor:
    """A standard normal to the normal truncated at +-TRUNCATION, quantile to quantile.

    With s = erf(e / sqrt 2) = 2 Phi(e) - 1, uniform on (-1, 1), truncation scales s by the share of
    the normal that is kept.
    """
    kept = math.erf(TRUNCATION / math.sqrt(2))
    s = torch.erf(eps / math.sqrt(2))
    return (math.sqrt(2) * torch.erfinv(kept * s)).clamp(-TRUNCATION, TRUNCATION)


class ConditioningAugmentation(nn.Module):
    """Pooled text and standard normal noise to a condition, whose moments are for its KL term."""

    def __init__(self, width: int, dims: int, kind: str) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"conditioning augmentation: kind={kind!r}; expected one of {', '.join(KINDS)}"
            )
        self.kind = kind
        factor, self.activation = KINDS[kind]
        self.linear = nn.Linear(width, factor * dims)

    def forward(
        self,
        pooled: Tensor,  # (N, W)
        eps: Tensor,  # (N, C); zeros give the mean
    ) -> tuple[Tensor, Moments]:  # c (N, C) and the Gaussian that it is drawn from
        moments = self.moments(pooled)
        return sample(moments, truncated(eps) if self.kind == "log_sigma" else eps), moments

    def moments(self, pooled: Tensor) -> Moments:
        """Of the condition under pooled text (N, W), (N, C) each."""
        mean, spread = self.activation(self.linear(pooled)).chunk(2, dim=1)  # (N, C) each
        return Moments(mean, 2 * spread if self.kind == "log_sigma" else spread)

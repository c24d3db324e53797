"""Samplers of the probability-flow ODE, dy/dsigma = (y - x0(y, sigma)) / sigma, and of its SDE.

Free functions of `denoise(y, sigma) -> x0` and a descending grid of noise levels. y starts as
sigmas[0] eps, and the sample comes back at sigmas[-1]. A last level of 0 returns the last x0.

All are written as steps of x0 + ratio (y - x0), ratio = next / sigma: the equal of y + (next -
sigma) (y - x0) / sigma, without its loss of float32 digits where sigma is in the thousands.

The SDE forgets part of y at each step and puts fresh noise in its place: what a network decided
wrongly at a high level can be decided again.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from salon.diffusion.schedule import Denoise


def euler(denoise: Denoise, y: Tensor, sigmas: Tensor) -> Tensor:
    """DDIM with eta 0 (Song et al. 2020, Equation 13) is Euler's method in sigma."""
    for sigma, ahead in _steps(sigmas):
        x0 = denoise(y, sigma)
        y = x0 + float(ahead / sigma) * (y - x0)
    return y


def heun(denoise: Denoise, y: Tensor, sigmas: Tensor) -> Tensor:
    """Karras et al. 2022, Algorithm 1: two evaluations a step, the last step Euler's."""
    for sigma, ahead in _steps(sigmas):
        x0 = denoise(y, sigma)
        y = x0 + float(ahead / sigma) * (y - x0)
        if ahead > 0:
            # The average slope is the first and half the change of slope from sigma to ahead. As y
            # now lies on the first slope, that change is (x0 - x0_ahead) / ahead.
            y = y + float((sigma - ahead) / (2 * ahead)) * (denoise(y, ahead) - x0)
    return y


def dpmpp_2m(denoise: Denoise, y: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2: x0 extrapolated over log sigma.

    The first step has no history, and a step to 0 is infinitely long: both are Euler's.
    """
    before, previous = math.inf, None
    for sigma, ahead in _steps(sigmas):
        x0 = middle = denoise(y, sigma)
        if previous is not None and ahead > 0:
            r = math.log(before / sigma) / math.log(sigma / ahead)
            middle = x0 + (x0 - previous) / (2 * r)
        y = middle + float(ahead / sigma) * (y - middle)
        before, previous = float(sigma), x0
    return y


def euler_ancestral(denoise: Denoise, y: Tensor, sigmas: Tensor, eps: Tensor) -> Tensor:
    """The ancestral sampler of Ho et al. 2020, in sigma. It is DDIM with eta 1 (Song et al.
    2020, Equations 12 and 16).

    eps (S - 1, *y.shape) is the noise of the S steps but the last, which adds none.
    """
    for i, (sigma, ahead) in enumerate(_steps(sigmas)):
        x0 = denoise(y, sigma)
        kept = float(ahead / sigma) ** 2
        y = x0 + kept * (y - x0)
        if i < len(eps):
            y = y + float(ahead) * math.sqrt(1 - kept) * eps[i]
    return y


SAMPLERS = {"ddim": euler, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
STOCHASTIC = {"euler_ancestral": euler_ancestral}  # also take the noise of their steps


def _steps(sigmas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbouring levels as CPU scalars in float64: no coefficient makes a GPU wait."""
    return pairwise(sigmas.cpu().double())

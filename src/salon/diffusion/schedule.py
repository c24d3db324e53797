"""Processes: how a network is trained, and how it is asked in the samplers' language.

Samplers speak variance exploding, y = x0 + sigma eps. A network is trained in coordinates of its
own, x = a(t) x0 + b(t) eps, so that y = x / a and sigma = b / a, and predicts a target from which
x0 follows. A process holds a, b and the target; `denoiser` joins it to a network.

Rectified flow: Liu et al. 2022, Lipman et al. 2022; logit-normal times and the shift of the noise
levels: Esser et al. 2024. Cosine schedule with v-prediction: Salimans & Ho 2022; its shift:
Hoogeboom et al. 2023. In both processes the shift multiplies sigma, as larger images need.

N images, () a scalar that all of them share, ... the axes of one sample (channels, rows, columns).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# At t = 1 sigma is infinite. Starting from noise alone at a finite sigma moves a sample by mean /
# sigma of its standard deviation: 1 % of the mean here, over the shift. Closer to 1 the first of 20
# steps would span a factor of 50 in sigma, too far for Heun's rule.
START = 0.99

Denoise = Callable[[Tensor, Tensor], Tensor]  # y (N, ...), sigma () -> x0 (N, ...)


class Noised(NamedTuple):
    """One training example in the network's coordinates."""

    x: Tensor  # (N, ...)
    target: Tensor  # (N, ...)


class Process(ABC):
    """Coordinates x = a(t) x0 + b(t) eps over t in [0, 1], from data (a = 1) to noise (a = 0)."""

    def __init__(self, *, shift: float) -> None:
        if not (shift > 0 and math.isfinite(shift)):
            raise ValueError(
                f"shift={shift} multiplies sigma; give a number above 0 (1 = no shift)"
            )
        self.shift = shift

    @abstractmethod
    def times(self, uniform: Tensor) -> Tensor:
        """Training times from uniform draws of [0, 1), so that the caller owns the chance."""

    @abstractmethod
    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        """What the network sees and what it should answer."""

    @abstractmethod
    def x0(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean data that the network's answer implies; t is (N,) or ()."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """b / a"""

    @abstractmethod
    def t(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """a, so that x = scale(t) y."""

    @abstractmethod
    def shifted(self, t: Tensor) -> Tensor:
        """The time whose sigma is `shift` times that of t."""

    def sigmas(self, steps: int) -> Tensor:
        """Descending levels for `steps` steps, uniform in t before the shift; the last is 0."""
        if steps < 1:
            raise ValueError(f"steps={steps} draws nothing; give a whole number from 1 up")
        t = torch.linspace(START, 0, steps + 1, dtype=torch.float64)
        return self.sigma(self.shifted(t)).float()  # (steps + 1,)


class RectifiedFlow(Process):
    """x = (1 - t) x0 + t eps, target eps - x0, logit(t) ~ N(mean, std^2) before the shift."""

    def __init__(self, *, mean: float, std: float, shift: float) -> None:
        super().__init__(shift=shift)
        if not (std > 0 and math.isfinite(std)):
            raise ValueError(f"std={std} is the spread of logit(t); give a number above 0")
        self.mean, self.std = mean, std

    def times(self, uniform: Tensor) -> Tensor:
        logit = self.mean + self.std * torch.special.ndtri(uniform)
        return self.shifted(torch.sigmoid(logit))  # (N,)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        t = _over(t, x0)
        return Noised((1 - t) * x0 + t * eps, eps - x0)

    def x0(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return x - _over(t, x) * output

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def scale(self, t: Tensor) -> Tensor:
        return 1 - t

    def shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)


class CosineV(Process):
    """x = cos(pi t / 2) x0 + sin(pi t / 2) eps, target v = cos eps - sin x0, t uniform.

    The log signal-to-noise ratio is -2 log tan(pi t / 2).
    """

    def times(self, uniform: Tensor) -> Tensor:
        return self.shifted(uniform)  # (N,)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        angle = _over(t, x0) * (math.pi / 2)
        a, b = angle.cos(), angle.sin()
        return Noised(a * x0 + b * eps, a * eps - b * x0)

    def x0(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        angle = _over(t, x) * (math.pi / 2)
        return angle.cos() * x - angle.sin() * output

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tan(t * (math.pi / 2))

    def t(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma) * (2 / math.pi)

    def scale(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def shifted(self, t: Tensor) -> Tensor:
        angle = t * (math.pi / 2)  # atan2, since tan changes its sign where float32 rounds t to 1
        return torch.atan2(self.shift * angle.sin(), angle.cos()) * (2 / math.pi)


def denoiser(process: Process, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn `network(x, t, *condition) -> output` into `denoise(y, sigma, *condition) -> x0`.

    sigma is a scalar on the CPU, where its coefficients are computed in float64: the device that
    holds y never waits for them.
    """

    def denoise(y: Tensor, sigma: Tensor, *condition: object) -> Tensor:
        t = process.t(sigma.double())  # ()
        x = float(process.scale(t)) * y  # (N, ...)
        times = torch.full(y.shape[:1], float(t), dtype=y.dtype, device=y.device)  # (N,)
        return process.x0(x, network(x, times, *condition), t)

    return denoise


def _over(t: Tensor, x: Tensor) -> Tensor:
    """Times, one per sample, beside the samples; a scalar already is."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t  # (N, 1, ...) or ()

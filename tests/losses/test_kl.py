"""The divergence against torch.distributions and against its integral."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from salon.losses.kl import kl


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 4, 3, 2, generator=g, dtype=torch.float64)
    return mean, 3 * logvar


def test_is_that_of_torch_summed_over_each_sample() -> None:
    mean, logvar = moments()
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl((mean, logvar)), expected.sum((1, 2, 3)), rtol=1e-12, atol=1e-12)


def test_is_its_integral() -> None:
    """KL = integral of q (log q - log p), by the trapezoid rule over 12 standard deviations."""
    mean, std = 0.7, 0.5
    x = torch.linspace(mean - 12 * std, mean + 12 * std, 20_001, dtype=torch.float64)
    q = Normal(torch.tensor(mean, dtype=torch.float64), std)
    p = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    integral = torch.trapezoid(q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x)), x)
    got = kl((torch.full((1, 1), mean).double(), torch.full((1, 1), 2 * math.log(std)).double()))
    torch.testing.assert_close(got[0], integral, rtol=1e-7, atol=0)


def test_is_zero_at_the_standard_normal_alone() -> None:
    zeros = torch.zeros(2, 3, 4, 4)
    assert torch.equal(kl((zeros, zeros)), torch.zeros(2))
    assert (kl((zeros + 0.01, zeros)) > 0).all()
    assert (kl((zeros, zeros - 0.01)) > 0).all()


def test_keeps_its_digits_near_the_standard_normal() -> None:
    logvar = torch.full((1, 1), 1e-4)
    exact = 0.5 * (math.expm1(1e-4) - 1e-4)
    got = kl((torch.zeros(1, 1), logvar)).item()
    assert abs(got - exact) <= 0.01 * exact

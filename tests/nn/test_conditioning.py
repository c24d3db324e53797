"""Each kind of conditioning augmentation against its formulas, and the truncated normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from salon.losses.kl import kl
from salon.nn.autoencoder import Moments
from salon.nn.conditioning import KINDS, ConditioningAugmentation, truncated

N, W, C = 64, 11, 5


def made(kind: str) -> tuple[ConditioningAugmentation, Tensor, Tensor]:
    torch.manual_seed(0)
    module = ConditioningAugmentation(W, C, kind)
    return module, 3 * torch.randn(N, W), torch.randn(N, C)


def by_hand(module: ConditioningAugmentation, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sigma."""
    h = pooled @ module.linear.weight.T + module.linear.bias
    if module.kind == "glu":
        h = h[:, : 2 * C] / (1 + (-h[:, 2 * C :]).exp())
    elif module.kind == "relu":
        h = h * (h > 0)
    else:
        h = torch.where(h > 0, h, 0.2 * h)
        return h[:, :C], h[:, C:].exp()
    return h[:, :C], (h[:, C:] / 2).exp()


@pytest.mark.parametrize("kind", KINDS)
def test_is_its_formula(kind: str) -> None:
    module, pooled, eps = made(kind)
    c, moments = module(pooled, eps)
    mean, sigma = by_hand(module, pooled)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close((moments.logvar / 2).exp(), sigma)
    noise = truncated(eps) if kind == "log_sigma" else eps
    torch.testing.assert_close(c, mean + sigma * noise)


@pytest.mark.parametrize(("kind", "features"), [("glu", 512), ("relu", 256), ("log_sigma", 256)])
def test_published_sizes(kind: str, features: int) -> None:
    module = ConditioningAugmentation(1024, 128, kind)
    count = sum(p.numel() for p in module.parameters())
    assert count == 1024 * features + features


def test_sigma_goes_below_one_but_for_relu() -> None:
    for kind in KINDS:
        module, pooled, eps = made(kind)
        _, (mean, logvar) = module(pooled, eps)
        below = (logvar < 0).any().item()
        assert below == (kind != "relu"), kind
        if kind == "relu":
            assert (mean >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_it_is_the_mean(kind: str) -> None:
    module, pooled, _ = made(kind)
    c, moments = module(pooled, torch.zeros(N, C))
    assert torch.equal(c, moments.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_its_own_text_and_noise(kind: str) -> None:
    module, pooled, eps = made(kind)
    c, _ = module(pooled, eps)
    backwards, _ = module(pooled.flip(0), eps.flip(0))
    torch.testing.assert_close(backwards.flip(0), c)
    pooled[1:], eps[1:] = 0, 7
    torch.testing.assert_close(module(pooled, eps)[0][0], c[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_condition_trains_mean_and_spread(kind: str) -> None:
    module, pooled, eps = made(kind)
    c, _ = module(pooled, eps)
    (c * eps).sum().backward()
    gradient = module.linear.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(1) > 0).all()


def test_noise_in_tensorflow_is_truncated_at_two_deviations() -> None:
    module, pooled, _ = made("log_sigma")
    for far in (4.0, 40.0, -40.0, math.inf):
        c, (mean, logvar) = module(pooled, torch.full((N, C), far))
        distance = (c - mean) / (logvar / 2).exp()
        torch.testing.assert_close(
            distance, torch.full_like(c, math.copysign(2, far)), rtol=0.001, atol=0
        )
    assert (truncated(torch.linspace(-50, 50, 10_001)).abs() <= 2).all()


def test_truncated_normal_quantile_by_quantile() -> None:
    p = np.linspace(0.001, 0.999, 999)
    got = truncated(torch.tensor(stats.norm.ppf(p), dtype=torch.float32))
    expected = torch.tensor(stats.truncnorm.ppf(p, -2, 2), dtype=torch.float32)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_truncated_normal_by_its_spread() -> None:
    torch.manual_seed(0)
    drawn = truncated(torch.randn(200_000))
    assert drawn.std().item() == pytest.approx(0.8796, abs=0.005)  # of TensorFlow's
    assert drawn.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("mean", "logvar", "expected"), [(0, 0, 0), (1, 0, 0.5), (0, 1, 0.359141)])
def test_its_divergence_by_dimension(mean: float, logvar: float, expected: float) -> None:
    """The papers' codes take the mean over dimensions: it does not grow with them."""
    for dims in (1, 128):
        moments = Moments(torch.full((2, dims), float(mean)), torch.full((2, dims), float(logvar)))
        assert (kl(moments).mean() / dims).item() == pytest.approx(expected, abs=1e-6)


def test_the_divergence_of_log_sigma_is_that_of_tensorflow() -> None:
    module, pooled, eps = made("log_sigma")
    _, moments = module(pooled, eps)
    mean, sigma = by_hand(module, pooled)
    expected = (-sigma.log() + 0.5 * (sigma**2 + mean**2 - 1)).mean()
    torch.testing.assert_close(kl(moments).mean() / C, expected)


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind='gelu'; expected one of glu, relu, log_sigma"):
        ConditioningAugmentation(W, C, "gelu")

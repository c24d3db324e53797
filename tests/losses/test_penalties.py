"""Penalties of discriminators whose gradients are known by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from salon.losses.penalties import LazyR1, full_precision, matching_aware, zero_centered

N, C, H, W, E = 4, 3, 5, 6, 7


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    images, condition = torch.randn(N, C, H, W, dtype=dtype), torch.randn(N, E, dtype=dtype)
    return images.requires_grad_(), condition.requires_grad_()


def linear(images: Tensor, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (images * a).sum((1, 2, 3)) + (condition * b).sum(1)  # (N,)


def weights(a: float, b: float) -> tuple[Tensor, Tensor]:
    return torch.full((C, H, W), a, requires_grad=True), torch.full((E,), b, requires_grad=True)


def test_of_a_linear_discriminator() -> None:
    """2 (|a|^2 + |b|^2)^3, and 12 (|a|^2 + |b|^2)^2 a for its own step."""
    images, condition = inputs()
    a, b = weights(0.1, -0.3)
    value = matching_aware(linear(images, condition, a, b), images, condition, weight=2, power=6)
    square = 0.01 * C * H * W + 0.09 * E
    assert value.shape == ()
    assert value.item() == pytest.approx(2 * square**3, rel=1e-5)
    value.backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad, 12 * square**2 * a.detach())
    torch.testing.assert_close(b.grad, 12 * square**2 * b.detach())


def test_weight_and_power_are_what_they_say() -> None:
    images, condition = inputs()
    logits = linear(images, condition, *weights(0.1, 0.1))
    square = 0.01 * (C * H * W + E)
    for weight, power in ((1.0, 2.0), (0.5, 4.0), (3.0, 3.0)):
        value = matching_aware(logits, images, condition, weight=weight, power=power)
        assert value.item() == pytest.approx(weight * square ** (power / 2), rel=1e-5)


def test_is_the_mean_of_each_samples_own_norm() -> None:
    """Of D = |x|^2 / 2 + |e|^2 / 2, whose gradients are x and e."""
    images, condition = inputs()
    logits = (images.square().sum((1, 2, 3)) + condition.square().sum(1)) / 2
    squares = 2 * logits.detach()
    value = matching_aware(logits, images, condition, weight=1, power=6)
    torch.testing.assert_close(value, squares.pow(3).mean())
    x_only = images.detach().square().sum((1, 2, 3))
    torch.testing.assert_close(zero_centered(logits, images), x_only.mean())


def test_is_finite_where_the_discriminator_is_flat() -> None:
    """The root of the square would give NaN here, and spoil the weights at the first step."""
    images, condition = inputs()
    a, b = weights(0.0, 0.0)
    value = matching_aware(linear(images, condition, a, b), images, condition, weight=2, power=6)
    value.backward()
    assert value.item() == 0
    for x in (a, b):
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_a_power_without_a_gradient_at_zero_is_refused() -> None:
    images, condition = inputs()
    logits = linear(images, condition, *weights(0.1, 0.1))
    with pytest.raises(ValueError, match=r"power=1; expected 2 or more"):
        matching_aware(logits, images, condition, weight=2, power=1)


def test_norms_are_taken_in_float32() -> None:
    """In float16 the sixth power of a norm overflows from 6.35 on."""
    images, condition = inputs(torch.float16)
    a, b = (x.detach().half() for x in weights(1.0, 1.0))
    logits = linear(images, condition, a, b)
    square = C * H * W + E
    value = matching_aware(logits, images, condition, weight=2, power=6)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(2 * square**3, rel=1e-3)
    assert zero_centered(logits, images).dtype == torch.float32


def test_autocast_does_not_reach_the_gradients() -> None:
    torch.manual_seed(0)
    d = torch.nn.Sequential(torch.nn.Linear(E, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    _, x = inputs()
    logits = d(x).squeeze(1)
    outside = zero_centered(logits, x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = zero_centered(logits, x)
    assert torch.equal(inside, outside)


def test_r1_of_a_linear_discriminator_sums_over_pixels() -> None:
    images, condition = inputs()
    a, b = weights(0.2, 5.0)
    value = zero_centered(linear(images, condition, a, b), images)
    assert value.item() == pytest.approx(0.04 * C * H * W, rel=1e-5)
    value.backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 2 * a.detach())
    assert b.grad is None or not b.grad.any()


def test_lazy_r1_of_a_linear_discriminator() -> None:
    """every * gamma / 2 * |a|^2."""
    images, condition = inputs()
    a, b = weights(0.2, 5.0)
    value = LazyR1(gamma=0.3, every=4)(linear(images, condition, a, b), images)
    assert value.shape == ()
    assert value.item() == pytest.approx(4 * 0.15 * 0.04 * C * H * W, rel=1e-5)
    value.backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 4 * 0.3 * a.detach())


@pytest.mark.parametrize(("every", "turns"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_lazy_r1_takes_every_kth_turn(every: int, turns: list[int]) -> None:
    r1 = LazyR1(gamma=1.0, every=every)
    assert [batches for batches in range(7) if r1.due(batches)] == turns


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": 0.0, "every": 1}, r"model\.r1\.gamma=0\.0; .*model\.r1=null"),
        ({"gamma": -1.0, "every": 1}, r"model\.r1\.gamma=-1\.0"),
        ({"gamma": float("nan"), "every": 1}, r"model\.r1\.gamma=nan"),
        ({"gamma": 1.0, "every": 0}, r"model\.r1\.every=0; .*at least 1"),
    ],
)
def test_a_lazy_r1_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LazyR1(**options)


@pytest.mark.parametrize(("wanted", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_full_precision_where_it_is_wanted(wanted: bool, dtype: torch.dtype) -> None:
    layer, x = torch.nn.Linear(E, 2), torch.ones(1, E)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x.device, wanted):
            assert layer(x).dtype == dtype
        assert layer(x).dtype == torch.bfloat16


def test_inputs_that_nothing_was_recorded_of_are_a_bug() -> None:
    images, condition = inputs()
    logits = linear(images, condition, *weights(0.1, 0.1))
    with pytest.raises(AssertionError, match="requires_grad"):
        zero_centered(logits, torch.zeros(N, C, H, W))

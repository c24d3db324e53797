"""Operations against their closed forms: a multiply-add is two."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salon.metrics.flops import FlopCount

N, C, D, SIDE = 3, 4, 5, 8


def test_linear_and_convolution_forward_and_backward() -> None:
    conv = nn.Conv2d(2, C, kernel_size=3, padding=1)
    linear = nn.Linear(C * SIDE**2, D)
    x = torch.randn(N, 2, SIDE, SIDE)
    of_conv = 2 * N * SIDE**2 * C * 2 * 9
    of_linear = 2 * N * C * SIDE**2 * D
    with FlopCount() as forward:
        out = linear(F.relu(conv(x)).flatten(1))
    assert forward.total == of_conv + of_linear
    with FlopCount() as backward:
        out.sum().backward()
    # Each layer's weights; and the linear's input, but not the images, which need no gradient.
    assert backward.total == of_conv + 2 * of_linear
    with FlopCount() as both, torch.enable_grad():
        linear(conv(x.requires_grad_()).flatten(1)).sum().backward()
    assert both.total == 3 * (of_conv + of_linear)


def test_twice_through_a_leaf_as_r1_goes() -> None:
    """torch's own counter raises here; should it stop doing so, it can take this one's place."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = nn.Linear(D, 1)
    weight = layer.weight

    def penalty() -> None:
        x = torch.randn(N, D, requires_grad=True)  # a leaf
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    with FlopCount() as count:
        penalty()
    once = 2 * N * D
    # Forward, its gradient by x, and the backward of both, which reaches x as well as the weights.
    assert count.total >= 4 * once
    assert count.total % once == 0
    assert weight.grad is not None
    with pytest.raises(RuntimeError, match="leaf node"), FlopCounterMode(display=False):
        penalty()


def test_attention_on_this_device() -> None:
    heads, length = 2, 6
    q, k, v = (torch.randn(N, heads, length, D) for _ in range(3))
    with FlopCount() as count:
        F.scaled_dot_product_attention(q, k, v)
    assert count.total == 2 * (2 * N * heads * length * length * D)


@pytest.mark.parametrize("make", ["attention", "layer"])
def test_fused_inference_is_not_free(make: str) -> None:
    """Without gradients torch fuses these into an operation that no formula knows."""
    torch.manual_seed(0)
    x = torch.randn(N, 6, 8)
    if make == "attention":
        attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        run = lambda: attention(x, x, x, need_weights=False)  # noqa: E731
    else:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        run = lambda: layer(x)  # noqa: E731
    assert torch.backends.mha.get_fastpath_enabled()
    with FlopCount() as trained:
        run()
    with torch.no_grad(), FlopCount() as sampled:
        run()
    assert sampled.total == trained.total > 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_nothing_is_counted_outside() -> None:
    with FlopCount() as count:
        pass
    torch.ones(2, 2) @ torch.ones(2, 2)
    assert count.total == 0
    with FlopCount() as outer:
        torch.ones(2, 2) @ torch.ones(2, 2)
        with FlopCount() as inner:
            torch.ones(2, 2) @ torch.ones(2, 2)
    assert (outer.total, inner.total) == (32, 16)

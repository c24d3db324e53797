"""Differentiable augmentation: each piece by itself, its ranges, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salon.nn.augment import DiffAugment

N, H, W = 512, 16, 24


def augment(color: bool = False, translation: float = 0, cutout: float = 0) -> DiffAugment:
    torch.manual_seed(0)
    return DiffAugment(color=color, translation=translation, cutout=cutout)


def numbered(n: int) -> Tensor:
    """The same image n times, each of its values unlike any other and unlike 0."""
    return torch.arange(1.0, 3 * H * W + 1).view(1, 3, H, W).repeat(n, 1, 1, 1)


def test_nothing_is_done_where_all_is_off() -> None:
    x = numbered(2)
    assert torch.equal(augment()(x), x)


def test_translation_moves_each_image_and_lets_zeros_in() -> None:
    x = numbered(N)
    out = augment(translation=0.125)(x)
    seen = set()
    for image in out:
        for down, right in ((d, r) for d in range(-2, 3) for r in range(-3, 4)):
            expected = torch.zeros_like(image)
            expected[:, max(0, down) : H + min(0, down), max(0, right) : W + min(0, right)] = x[
                0, :, max(0, -down) : H - max(0, down), max(0, -right) : W - max(0, right)
            ]
            if torch.equal(image, expected):
                seen.add((down, right))
                break
        else:
            pytest.fail("an image is no translation of its input by at most an eighth")
    assert len(seen) == 5 * 7


def test_cutout_makes_one_hole_of_half_the_side() -> None:
    kept = augment(cutout=0.5)(torch.ones(N, 3, H, W))
    assert torch.equal(kept.amin(1), kept.amax(1))
    hole = kept[:, 0] == 0  # (N, H, W)
    heights, widths = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(hole.sum((1, 2)), heights * widths)
    rectangle = hole.any(2)[:, :, None] & hole.any(1)[:, None, :]
    assert torch.equal(hole, rectangle)
    # Its centre is on the image, so that a quarter of it at least is.
    assert (heights.min(), heights.max()) == (H // 4, H // 2)
    assert (widths.min(), widths.max()) == (W // 4, W // 2)
    assert (heights == H // 2).float().mean() == pytest.approx((H / 2 + 1) / (H + 1), abs=0.08)
    assert hole.any(0).all()
    edges = hole.any(2)[:, [0, -1]].float().mean(0)
    assert edges[0] == pytest.approx(edges[1].item(), abs=0.08)


def test_brightness_moves_a_plain_image_by_up_to_a_half() -> None:
    out = augment(color=True)(torch.full((N, 3, H, W), 0.2))
    shift = out[:, 0, 0, 0] - 0.2
    torch.testing.assert_close(out, (0.2 + shift).view(N, 1, 1, 1).expand_as(out))
    assert -0.5 <= shift.min() < -0.47
    assert 0.47 < shift.max() <= 0.5


def test_saturation_and_contrast_keep_to_their_ranges() -> None:
    """A grey part that varies over the image shows the contrast; a colored one, both."""
    gray = torch.linspace(-1, 1, H).view(1, 1, H, 1).expand(1, 3, H, W)
    chroma = torch.tensor([0.5, -0.2, -0.3]).view(1, 3, 1, 1)
    out = augment(color=True)((gray + chroma).repeat(N, 1, 1, 1))
    grays = out.mean(1)  # (N, H, W)
    contrast = (grays[:, -1, 0] - grays[:, 0, 0]) / 2
    saturation = (out - grays[:, None])[:, 0, 0, 0] / 0.5 / contrast
    assert 0.5 <= contrast.min() < 0.53
    assert 1.47 < contrast.max() <= 1.5 + 1e-6
    assert -1e-6 <= saturation.min() < 0.05
    assert 1.95 < saturation.max() <= 2 + 1e-5
    brightness = out.mean((1, 2, 3))
    expected = (
        gray * contrast.view(N, 1, 1, 1)
        + chroma * (saturation * contrast).view(N, 1, 1, 1)
        + brightness.view(N, 1, 1, 1)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    draws = torch.stack([contrast, saturation, brightness])
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.15


def test_draws_follow_the_seed_and_are_each_images_own() -> None:
    x = numbered(2)
    first = augment(True, 0.25, 0.5)(x)
    again = augment(True, 0.25, 0.5)(x)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_the_gradient_comes_back_to_the_pixels_that_are_seen() -> None:
    x = numbered(8).requires_grad_()
    y = augment(translation=0.25, cutout=0.5)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    for before, after, g in zip(x.detach(), y.detach(), gradient, strict=True):
        assert torch.equal(g, torch.isin(before, after).float())
    assert gradient.mean() < 1


def test_it_can_be_differentiated_twice() -> None:
    """As the gradient penalties do, of a discriminator behind it."""
    torch.manual_seed(1)
    x = torch.randn(4, 3, H, W, requires_grad=True)
    y = augment(True, 0.125, 0.5)(x)
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_shapes_and_checkpoints_are_left_alone() -> None:
    module = augment(True, 0.125, 0.5)
    x = torch.rand(1, 3, 7, 9)
    assert module(x).shape == x.shape
    assert not module.state_dict()


@pytest.mark.parametrize("name", ["translation", "cutout"])
@pytest.mark.parametrize("share", [-0.1, 1, 8])
def test_shares_are_shares(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=rf"augment\.{name}={share}; expected a share"):
        augment(**{name: share})

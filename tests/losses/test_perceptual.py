"""LPIPS as a loss, on a backbone with random weights: no download."""

from __future__ import annotations

import urllib.error

import pytest
import torch
import torchvision

from salon.losses.perceptual import lpips


@pytest.fixture
def random_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torchvision.models.squeezenet1_1

    def untrained(**_: object) -> torch.nn.Module:
        torch.manual_seed(0)
        return made(weights=None)

    monkeypatch.setattr(torchvision.models, "squeezenet1_1", untrained)


def test_a_distance_for_each_image_with_gradients(random_backbone: None) -> None:
    distance = lpips(net="squeeze")
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    other = x.clone()
    other[1] = -other[1]
    other.requires_grad_()
    d = distance(x, other)
    assert d.shape == (3,)
    torch.testing.assert_close(d[[0, 2]], torch.zeros(2))
    assert d[1] > 1e-3
    d.sum().backward()
    assert other.grad is not None
    assert other.grad[1].abs().sum() > 0


def test_another_net_is_refused() -> None:
    with pytest.raises(ValueError, match=r"perceptual\.net='resnet'; expected one of vgg"):
        lpips(net="resnet")


def test_offline_it_says_where_to_put_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models, "vgg16", offline)
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth into .*model\.perceptual=null"):
        lpips(net="vgg")

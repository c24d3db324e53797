"""Blocks that begin as the identity, and the choice of groups and of what normalises."""

import pytest
import torch
from torch import nn

from salon.nn.attention import SpatialTransformer
from salon.nn.blocks import (
    Bottleneck,
    Downsample,
    ResBlock,
    Upsample,
    conv_norm,
    group_norm,
    init_he,
)


def test_residual_blocks_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 6)
    res = ResBlock(8, 8, width=5, eps=1e-5)
    assert torch.equal(res(x, torch.randn(2, 5)), x)
    transformer = SpatialTransformer(8, context_dim=3, heads=2, depth=1)
    assert torch.equal(transformer(x, torch.randn(2, 7, 3), None), x)


@pytest.mark.parametrize(
    ("channels", "groups"), [(320, 32), (48, 16), (24, 8), (10, 2), (7, 1), (16, 16)]
)
def test_groups(channels: int, groups: int) -> None:
    assert group_norm(channels, 1e-5).num_groups == groups


def test_resampling_halves_and_doubles() -> None:
    x = torch.zeros(1, 4, 6, 8)
    assert Downsample(4, asymmetric=True)(x).shape == (1, 4, 3, 4)
    assert Downsample(4, asymmetric=False)(x).shape == (1, 4, 3, 4)
    assert Upsample(4)(x).shape == (1, 4, 12, 16)


def test_a_convolution_is_normalised_or_has_a_bias() -> None:
    shape = {"stride": 2, "padding": 1}
    conv, normal = conv_norm(3, 5, 4, norm="batch", **shape)
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is None
    assert isinstance(normal, nn.BatchNorm2d)
    assert normal.num_features == 5
    (plain,) = conv_norm(3, 5, 4, norm="none", **shape)
    assert isinstance(plain, nn.Conv2d)
    assert plain.bias is not None
    for one in (conv, plain):
        assert one(torch.zeros(2, 3, 8, 8)).shape == (2, 5, 4, 4)


def test_another_normalisation_is_refused() -> None:
    says = r"model\.discriminator\.norm='layer'; expected one of batch, none"
    with pytest.raises(ValueError, match=says):
        conv_norm(3, 5, 4, norm="layer")


def test_a_bottleneck_normalises_unless_told_otherwise() -> None:
    def normals(block: nn.Module) -> int:
        return sum(isinstance(part, nn.BatchNorm2d) for part in block.modules())

    assert normals(Bottleneck(8, nn.ReLU())) == 3
    assert normals(Bottleneck(8, nn.ReLU(), norm="none")) == 0


@torch.no_grad()
@pytest.mark.parametrize("slope", [0.2, 0.7])
def test_he_keeps_a_signals_size(slope: float) -> None:
    """Through six convolutions, each behind a leaky ReLU of that slope."""
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.LeakyReLU(slope), nn.Conv2d(128, 128, 3))]
    network, x = nn.Sequential(*layers), torch.randn(2, 128, 16, 16)
    assert network(x).square().mean() < 1e-3, "PyTorch's own law does not"
    init_he(network, slope)
    assert 0.5 < network(x).square().mean() < 2
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_he_leaves_linear_layers_as_they_are() -> None:
    layer = nn.Linear(5, 6)
    before = layer.weight.clone(), layer.bias.clone()
    init_he(layer, 0.2)
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(layer.bias, before[1])

"""Blocks that begin as the identity, and the choice of groups."""

import pytest
import torch

from salon.nn.attention import SpatialTransformer
from salon.nn.blocks import Downsample, ResBlock, Upsample, group_norm


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

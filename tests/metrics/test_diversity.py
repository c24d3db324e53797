from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from salon.metrics.diversity import vendi

ALL = {"most": 1000, "seed": 0}


def drawn(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "width"), [(30, 8), (8, 30), (20, 20)])
def test_equals_the_entropy_of_all_cosines(count: int, width: int) -> None:
    features = drawn(count, width).double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / count)
    shares = shares[shares > 1e-12]
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert vendi(drawn(count, width), **ALL) == pytest.approx(expected, rel=1e-9)
    assert 2 < expected < min(count, width)


def test_counts_directions() -> None:
    axes = torch.eye(12)
    assert vendi(axes, **ALL) == pytest.approx(12)
    assert vendi(axes.repeat(5, 1), **ALL) == pytest.approx(12)
    assert vendi(axes[:3].repeat(20, 1) * torch.rand(60, 1).add(0.1), **ALL) == pytest.approx(3)
    assert vendi(torch.ones(40, 7), **ALL) == pytest.approx(1)
    # Three quarters one way: exp(-3/4 log 3/4 - 1/4 log 1/4).
    uneven = torch.cat([axes[:1].repeat(3, 1), axes[1:2]])
    assert vendi(uneven, **ALL) == pytest.approx(1.7548, abs=1e-4)


def test_at_most_so_many_are_drawn_by_the_seed() -> None:
    features = drawn(200, 300)
    state = torch.get_rng_state()
    one = vendi(features, most=50, seed=0)
    assert one == vendi(features, most=50, seed=0)
    assert one != vendi(features, most=50, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert 40 < one < 50
    assert vendi(features, most=200, seed=0) == vendi(features, most=999, seed=1) > 50
    assert vendi(torch.eye(60), most=25, seed=0) == pytest.approx(25)  # without replacement


def test_what_has_no_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="vector of zeros"):
        vendi(torch.eye(3) * torch.tensor([[1.0], [0.0], [1.0]]), **ALL)
    with pytest.raises(ValueError, match="most=0"):
        vendi(torch.eye(3), most=0, seed=0)

"""Against loops over all pairs and torch-fidelity, on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kernel_mmd

from salon.metrics import sets
from salon.metrics.kernel import kid, mmd

POLYNOMIAL = {
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,
    "kid_kernel_poly_coef0": 1.0,
}
SETTINGS = {"subsets": 20, "subset_size": 50, "seed": 0}


def drawn(count: int, *, seed: int, shift: float = 0.0, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(real: Tensor, made: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(vectors: Tensor) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(vectors) for y in vectors[:i]]
        return float(np.mean(pairs))

    real, made = real.double(), made.double()
    across = np.mean([kernel(x, y) for x in real for y in made])
    return within(real) + within(made) - 2 * float(across)


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_mmd_is_over_all_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "ROWS", rows)
    real, made = drawn(23, seed=0), drawn(30, seed=1, shift=0.5)
    assert mmd(real, made) == pytest.approx(by_loops(real, made), rel=1e-12)


def test_mmd_equals_torch_fidelity() -> None:
    real, made = drawn(300, seed=0), drawn(300, seed=1, shift=0.3)
    expected = kernel_mmd(real.double().numpy(), made.double().numpy(), **POLYNOMIAL)
    assert mmd(real, made) == pytest.approx(float(expected), rel=1e-10)


def test_kid_is_torch_fidelitys_mmd_of_its_subsets() -> None:
    real, made = drawn(300, seed=0), drawn(200, seed=1, shift=0.4)
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(20):
        pair = [sets.subset(x, 50, generator).double().numpy() for x in (real, made)]
        values.append(float(kernel_mmd(*pair, **POLYNOMIAL)))
    found = kid(real, made, **SETTINGS)
    assert found.value == pytest.approx(np.mean(values), rel=1e-10)
    assert found.error == pytest.approx(np.std(values, ddof=1) * (50 / 150 + 1 / 20) ** 0.5)


def test_kid_is_about_the_mmd_of_all() -> None:
    real, made = drawn(300, seed=0), drawn(200, seed=1, shift=0.4)
    found = kid(real, made, subsets=100, subset_size=50, seed=0)
    spread = found.error / (50 / 150 + 1 / 100) ** 0.5
    assert found.value == pytest.approx(mmd(real, made), abs=4 * spread / 100**0.5)


def test_unbiased_where_the_distributions_are_one() -> None:
    values = torch.tensor([mmd(drawn(40, seed=i), drawn(40, seed=1000 + i)) for i in range(300)])
    error = float(values.std()) / 300**0.5
    assert abs(float(values.mean())) < 3 * error
    assert 0.2 < float((values < 0).double().mean()) < 0.8


def test_identical_sets_are_below_0() -> None:
    """Unbiased for independent sets, which these are not: each vector meets itself across only."""
    vectors = drawn(100, seed=0)
    own = (vectors.double().square().mean(1) + 1).pow(3).mean()
    pairs = vectors.double() @ vectors.double().T / 8 + 1
    expected = -2 / 99 * float(own - pairs.pow(3).mean())
    assert mmd(vectors, vectors) == pytest.approx(expected, rel=1e-9)


def test_the_error_is_that_of_fresh_sets() -> None:
    found = [
        kid(
            drawn(200, seed=i),
            drawn(200, seed=500 + i, shift=0.4),
            subsets=30,
            subset_size=50,
            seed=i,
        )
        for i in range(50)
    ]
    spread = float(torch.tensor([x.value for x in found]).std())
    told = float(torch.tensor([x.error for x in found]).mean())
    assert 0.75 < told / spread < 1.35


def test_repeats_by_its_seed_and_leaves_the_global_generator() -> None:
    real, made = drawn(200, seed=0), drawn(150, seed=1)
    state = torch.get_rng_state()
    one = kid(real, made, **SETTINGS)
    assert one == kid(real, made, **SETTINGS)
    assert one != kid(real, made, **{**SETTINGS, "seed": 1})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("changed", [{"subsets": 1}, {"subset_size": 1}, {"subset_size": 150}])
def test_a_spread_needs_subsets(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"2 to 149 vectors.*mmd"):
        kid(drawn(200, seed=0), drawn(150, seed=1), **{**SETTINGS, **changed})

"""Against a closed form, scipy's root of a matrix and torch-fidelity, on the same features."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from salon.metrics.frechet import (
    frechet,
    frechet_infinity,
    frechet_of_moments,
    moments,
)


def gaussian(count: int, width: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(width)) / width**0.5
    mix = mix * (1 + shift) + torch.eye(width)
    return torch.randn(count, width, generator=generator) @ mix + shift


def by_sqrtm(real: Tensor, made: Tensor) -> float:
    a, b = real.double().numpy(), made.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def by_fidelity(real: Tensor, made: Tensor) -> float:
    stats = [fid_features_to_statistics(x.double()) for x in (real, made)]
    return float(fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"])


@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 90), (41, 500)])
def test_equals_scipy_and_torch_fidelity(n: int, m: int) -> None:
    real, made = gaussian(n, 40, seed=0), gaussian(m, 40, seed=1, shift=0.3)
    expected = by_sqrtm(real, made)
    assert expected > 1
    assert frechet(real, made) == pytest.approx(expected, rel=1e-9)
    assert frechet(real, made) == pytest.approx(by_fidelity(real, made), rel=1e-9)
    assert frechet(made, real) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 90), (90, 20), (2, 3), (39, 40)])
def test_fewer_vectors_than_features(n: int, m: int) -> None:
    real, made = gaussian(n, 40, seed=0), gaussian(m, 40, seed=1, shift=0.3)
    # Eigenvalues of the product that are 0 come out as 1e-17: its root is good to 1e-8 each.
    assert frechet(real, made) == pytest.approx(by_fidelity(real, made), rel=1e-5)
    assert frechet(made, real) == pytest.approx(frechet(real, made), rel=1e-12)


def test_two_lines_at_right_angles_and_along() -> None:
    """Exact: sets on a line have covariances of rank 1, of which the root's trace is known."""
    line = torch.zeros(9, 30)
    line[:, 0] = torch.arange(-4.0, 5)
    across = line.roll(1, dims=1)
    variance = float(line[:, 0].var())
    assert frechet(line, across) == pytest.approx(2 * variance, rel=1e-12)
    assert frechet(line, 3 * line) == pytest.approx(4 * variance, rel=1e-12)
    assert frechet(line, line + 2) == pytest.approx(4 * 30, rel=1e-12)


@pytest.mark.parametrize("count", [10, 40, 400])
def test_identical_sets_are_0_up_to_rounding(count: int) -> None:
    features = gaussian(count, 40, seed=0) * 10 + 5
    scale = float(features.double().var(0).sum())
    assert abs(frechet(features, features)) < 1e-8 * scale
    assert abs(frechet(features, features.flip(0))) < 1e-8 * scale


def test_in_float64_whatever_the_features_are() -> None:
    real, made = gaussian(200, 8, seed=0) + 1000, gaussian(200, 8, seed=1) + 1000
    assert frechet(real, made) == pytest.approx(frechet(real.double(), made.double()), rel=1e-12)
    assert frechet(real, made) == pytest.approx(by_sqrtm(real, made), rel=1e-6)


def test_moments_of_two_ranks_are_those_of_one() -> None:
    features = gaussian(101, 6, seed=0, shift=2)
    whole = moments(features)
    parts = [moments(part) for part in features.split([50, 1, 20, 30])]
    one, other = parts[0].merged(parts[1]), parts[2].merged(parts[3])
    for merged in (one.merged(other), other.merged(one)):
        assert merged.size == 101
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.cov, whole.cov, rtol=1e-12, atol=1e-12)
    reference = torch.from_numpy(np.cov(features.double().numpy().T))
    torch.testing.assert_close(whole.cov, reference, rtol=1e-12, atol=1e-12)


def test_distance_of_moments_is_that_of_features() -> None:
    real, made = gaussian(300, 40, seed=0), gaussian(200, 40, seed=1, shift=0.3)
    assert frechet_of_moments(moments(real), moments(made)) == frechet(real, made)


def test_moments_of_too_few_are_refused() -> None:
    few, enough = moments(gaussian(39, 40, seed=0)), moments(gaussian(40, 40, seed=0))
    with pytest.raises(ValueError, match="real are moments of 39 vectors of 40 features"):
        frechet_of_moments(few, enough)
    with pytest.raises(ValueError, match="made are moments of 39"):
        frechet_of_moments(enough, few)


@pytest.mark.parametrize(("count", "products"), [(39, 1), (40, 0)])
def test_the_data_product_is_taken_below_full_rank(
    count: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Size] = []
    svdvals = torch.linalg.svdvals

    def watched(matrix: Tensor) -> Tensor:
        taken.append(matrix.shape)
        return svdvals(matrix)

    monkeypatch.setattr(torch.linalg, "svdvals", watched)
    frechet(gaussian(60, 40, seed=0), gaussian(count, 40, seed=1))
    assert taken == [(60, 39)] * products


SETTINGS = {"points": 10, "least": 50, "seed": 0}


def test_bias_falls_with_the_number_and_infinity_is_nearer_the_truth() -> None:
    """One distribution on both sides, so the truth is 0."""
    real = gaussian(20000, 16, seed=0)
    sizes = (100, 200, 400)
    distances: dict[int, list[float]] = {size: [] for size in sizes}
    infinite = []
    for seed in range(1, 9):
        made = gaussian(400, 16, seed=seed)
        for size in sizes:
            distances[size].append(frechet(real, made[:size]))
        infinite.append(frechet_infinity(real, made, **SETTINGS).value)
    means = [statistics.mean(distances[size]) for size in sizes]
    for more, fewer in zip(means[1:], means, strict=False):
        assert 1.6 < fewer / more < 2.6  # 1/N
    assert abs(statistics.mean(infinite)) < 0.25 * means[-1]
    nearer = sum(abs(a) < abs(b) for a, b in zip(infinite, distances[400], strict=True))
    assert nearer >= 7


@pytest.mark.parametrize(("n", "m", "width"), [(300, 120, 40), (30, 120, 40), (60, 35, 40)])
def test_infinity_is_the_line_through_distances_of_subsets(n: int, m: int, width: int) -> None:
    # Of equal vectors each subset has the same distance, so the line is flat.
    real, point = gaussian(n, width, seed=0), torch.ones(m, width)
    found = frechet_infinity(real, point, points=5, least=10, seed=0)
    assert found.value == pytest.approx(frechet(real, point), rel=1e-9)
    assert found.error < 1e-9
    made = gaussian(m, width, seed=1, shift=0.3)
    found = frechet_infinity(real, made, points=3, least=m - 2, seed=4)
    generator = torch.Generator().manual_seed(4)
    sizes = np.array([m - 2, m - 1, m])
    values = [
        frechet(real, made[torch.randperm(m, generator=generator)[:size]])
        for size in sizes.tolist()
    ]
    design = np.stack([np.ones(3), 1 / sizes], axis=1)
    fit, (residual,), *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    error = np.sqrt(residual * np.linalg.inv(design.T @ design)[0, 0])
    assert found.value == pytest.approx(fit[0], rel=1e-6)
    assert found.error == pytest.approx(error, rel=1e-4)


def test_infinity_repeats_by_its_seed_and_leaves_the_global_generator() -> None:
    real, made = gaussian(500, 8, seed=0), gaussian(300, 8, seed=1)
    state = torch.get_rng_state()
    one = frechet_infinity(real, made, **SETTINGS)
    assert one == frechet_infinity(real, made, **SETTINGS)
    assert one != frechet_infinity(real, made, **{**SETTINGS, "seed": 1})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("changed", [{"points": 2}, {"least": 1}, {"least": 295}])
def test_a_line_needs_points(changed: dict[str, int]) -> None:
    made = gaussian(300, 8, seed=1)
    with pytest.raises(ValueError, match=r"points=.*least=.*of 300"):
        frechet_infinity(made, made, **{**SETTINGS, **changed})

"""Against all distances at once, prdc (where it is installed) and torch-fidelity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from salon.metrics import sets
from salon.metrics.manifold import Cover, Overlap, density_coverage, precision_recall


def drawn(count: int, *, seed: int, shift: float = 0.0, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_hand(real: Tensor, made: Tensor, k: int) -> tuple[Cover, Overlap]:
    def apart(x: Tensor, y: Tensor) -> Tensor:
        return (x.double()[:, None] - y.double()).norm(dim=2)

    def radii(x: Tensor) -> Tensor:
        return apart(x, x).sort(dim=1).values[:, k]

    gaps = apart(made, real)  # (M, N)
    held = gaps < radii(real)
    cover = Cover(held.double().sum().item() / k / len(made), held.any(0).double().mean().item())
    precision = (gaps <= radii(real)).any(1).double().mean().item()
    recall = (gaps <= radii(made)[:, None]).any(0).double().mean().item()
    return cover, Overlap(precision, recall)


SETS = [
    (drawn(120, seed=0), drawn(90, seed=1), 5),
    (drawn(80, seed=2), drawn(130, seed=3, shift=0.7), 3),
    (drawn(60, seed=4) * 0.01 + 5, drawn(60, seed=5) * 0.005 + 5, 1),
    (drawn(25, seed=6, width=200), drawn(25, seed=7, width=200), 23),
]


@pytest.mark.parametrize("rows", [6, 17, 1024])
@pytest.mark.parametrize(("real", "made", "k"), SETS)
def test_equal_all_distances_at_once(
    real: Tensor, made: Tensor, k: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "ROWS", rows)
    cover, overlap = by_hand(real, made, k)
    assert density_coverage(real, made, neighbours=k) == pytest.approx(cover, rel=1e-12)
    assert precision_recall(real, made, neighbours=k) == pytest.approx(overlap, rel=1e-12)
    assert 0 < cover.coverage <= 1


@pytest.mark.parametrize(("real", "made", "k"), SETS)
def test_equal_prdc(real: Tensor, made: Tensor, k: int) -> None:
    prdc = pytest.importorskip("prdc")
    expected = prdc.compute_prdc(real.double().numpy(), made.double().numpy(), nearest_k=k)
    found = density_coverage(real, made, neighbours=k)._asdict()
    found |= precision_recall(real, made, neighbours=k)._asdict()
    assert found == pytest.approx(expected, rel=1e-12)


def test_precision_and_recall_equal_torch_fidelity() -> None:
    real, made, k = SETS[1]
    expected = calculate_precision_recall_full(made.double(), real.double(), k)
    assert precision_recall(real, made, neighbours=k) == pytest.approx(expected, rel=1e-6)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("rows", [16, 17, 1024])
def test_a_set_against_itself(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each K-th neighbour lies on a surface: what rounding makes of it must not be told."""
    monkeypatch.setattr(sets, "ROWS", rows)
    real = drawn(100, seed=0, width=64) * 7 + 30
    assert density_coverage(real, real, neighbours=5) == (1, 1)
    assert precision_recall(real, real, neighbours=5) == (1, 1)


def test_on_the_surface_of_a_ball() -> None:
    """The mirror image of one vector in another is as far from that as the first is."""
    for seed in range(30):
        real = drawn(2, seed=seed, width=64).double() * 3 + 10
        mirrored = 2 * real[1:] - real[:1]
        assert precision_recall(real, mirrored.repeat(2, 1), neighbours=1).precision == 1
        assert density_coverage(real, mirrored, neighbours=1) == (0, 0)


def test_coverage_of_a_fresh_set() -> None:
    found = density_coverage(drawn(1500, seed=0), drawn(1500, seed=1), neighbours=5)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.015)
    assert found.density == pytest.approx(1, abs=0.06)


def test_what_each_of_them_sees() -> None:
    modes = torch.tensor([[0.0], [20.0]]).repeat(100, 6)  # (200, 6), two modes
    real = drawn(200, seed=0) + modes
    one_mode, noise = drawn(200, seed=1), drawn(200, seed=2) + modes + 60
    dropped = precision_recall(real, one_mode, neighbours=3)
    assert dropped.precision > 0.8
    assert dropped.recall == pytest.approx(0.5, abs=0.1)
    assert density_coverage(real, one_mode, neighbours=5).coverage == pytest.approx(0.5, abs=0.05)
    assert density_coverage(real, noise, neighbours=5) == (0, 0)
    assert precision_recall(real, noise, neighbours=3) == (0, 0)
    # One outlier of the generated set lends its ball to recall, and nothing to coverage.
    outlier = torch.cat([one_mode[:199], torch.full((1, 6), 500.0)])
    assert precision_recall(real, outlier, neighbours=3).recall > 0.9
    assert density_coverage(real, outlier, neighbours=5).coverage < 0.6


def test_neither_depends_on_the_global_generator() -> None:
    real, made, k = SETS[0]
    state = torch.get_rng_state()
    density_coverage(real, made, neighbours=k)
    precision_recall(real, made, neighbours=k)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("neighbours", [0, 20])
def test_as_many_neighbours_as_there_are(neighbours: int) -> None:
    few, many = drawn(20, seed=0), drawn(50, seed=1)
    with pytest.raises(ValueError, match=f"neighbours={neighbours} of 20 vectors: from 1 to 19"):
        density_coverage(few, many, neighbours=neighbours)
    with pytest.raises(ValueError, match="of 20 vectors"):
        precision_recall(many, few, neighbours=neighbours)

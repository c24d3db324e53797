from __future__ import annotations

import pytest
import torch

from salon.metrics import sets
from salon.metrics.sets import blocks, check, nearest, subset


def drawn(count: int, width: int = 6, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 7, 1024])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1000, 1), (0.5, 1e-3), (1e5, 1e-3)])
def test_nearest_are_those_of_all_differences(
    rows: int, offset: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "ROWS", rows)
    ones, others = (drawn(n, seed=n).double() * scale + offset for n in (30, 40))
    gaps = (ones[:, None] - others).norm(dim=2)
    expected, at = gaps.sort(dim=1)
    found = nearest(ones, others, count=5)
    torch.testing.assert_close(found.distance, expected[:, :5], atol=1e-12, rtol=1e-12)
    assert torch.equal(found.indices, at[:, :5])


def test_equal_vectors_are_at_distance_0() -> None:
    vectors = drawn(20, 64) * 100 + 3000
    assert nearest(vectors, vectors, count=1).distance.eq(0).all()
    assert torch.equal(nearest(vectors, vectors, count=1).indices[:, 0], torch.arange(20))


def test_twins_are_told_apart_below_rounding_of_the_squares() -> None:
    vectors = drawn(50, 64).double() * 100
    found = nearest(vectors, torch.cat([vectors + 1e-6, vectors]), count=2)
    assert torch.equal(found.indices, torch.arange(50)[:, None] + torch.tensor([50, 0]))
    assert found.distance[:, 0].eq(0).all()
    torch.testing.assert_close(
        found.distance[:, 1], torch.full((50,), 8e-6).double(), rtol=1e-6, atol=0
    )


def test_bytes_do_not_wrap() -> None:
    dark, light = torch.zeros(1, 3, dtype=torch.uint8), torch.full((1, 3), 200, dtype=torch.uint8)
    assert nearest(dark, light, count=1).distance.item() == pytest.approx(200 * 3**0.5)


def test_a_block_is_bounded_in_rows_and_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "ELEMENTS", 60)
    monkeypatch.setattr(sets, "ROWS", 8)
    for width, rows in ((1, 8), (6, 8), (12, 5), (100, 1)):
        parts = list(blocks(drawn(21, width)))
        assert max(len(part) for _, part in parts) == rows
        assert torch.equal(torch.cat([part for _, part in parts]), drawn(21, width).double())
        assert [start for start, _ in parts] == list(range(0, 21, rows))


def test_a_subset_is_without_replacement() -> None:
    whole = torch.arange(50)[:, None]
    part = subset(whole, 30, torch.Generator().manual_seed(0))
    assert len(part.unique()) == len(part) == 30


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"real": drawn(1)}, r"real is of shape \(1, 6\).*at least 2"),
        ({"real": drawn(4)[0]}, r"real is of shape \(6,\)"),
        ({"real": drawn(4), "made": drawn(4) / 0}, "made holds NaN or infinity"),
        ({"real": drawn(4), "made": drawn(4, 5)}, r"real, made have \[5, 6\] features"),
    ],
)
def test_what_is_refused(given: dict[str, torch.Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check(least=2, **given)

"""Planted copies are found and fresh draws are not, in pixels and in features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salon.metrics import sets
from salon.metrics.copies import copies, directions, pixels

SETTINGS = {"alarms": 0.01, "seed": 0}
MIX = torch.randn(5, 40, generator=torch.Generator().manual_seed(99))


def drawn(count: int, seed: int) -> Tensor:
    """Features (N, 40) that live near 5 dimensions, so that neighbours are near."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(count, 5, generator=generator) @ MIX
    return inner + 0.1 * torch.randn(count, 40, generator=generator)


TRAIN, TEST, FRESH = drawn(900, 0), drawn(400, 1), drawn(500, 2)


def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Half a hundred near copies among fresh draws: them all, where they stand, of what."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randperm(500, generator=generator)[:50]
    sources = torch.randperm(900, generator=generator)[:50]
    made = FRESH.clone()
    made[places] = TRAIN[sources] + 0.02 * torch.randn(50, 40, generator=generator)
    return made, places, sources


def test_planted_copies_are_found_with_their_sources() -> None:
    made, places, sources = planted()
    found = copies(TRAIN, TEST, made, **SETTINGS)
    source = dict(zip(found.made.tolist(), found.train.tolist(), strict=True))
    assert all(source[p] == s for p, s in zip(places.tolist(), sources.tolist(), strict=True))
    assert len(found.made) <= 50 + 12  # of 450 fresh ones 1 % are expected
    assert found.share == len(found.made) / 500
    assert set(found.made[:50].tolist()) == set(places.tolist())  # the closest first
    assert found.ratio[found.made].max() <= found.threshold < 1
    assert (found.ratio <= found.threshold).sum() == len(found.made)


def test_fresh_draws_are_no_copies() -> None:
    shares, gaps = [], []
    for seed in range(10, 20):
        found = copies(TRAIN, drawn(400, 100 + seed), drawn(400, seed), **SETTINGS)
        shares.append(found.share)
        gaps.append(found.gap)
    assert 0 < sum(shares) / 10 < 0.02
    assert abs(sum(gaps) / 10) < 0.1  # copies: -0.4 and less, below


def test_the_rate_of_false_alarms_is_as_asked() -> None:
    for alarms in (0.05, 0.2, 0.5):
        shares = [
            copies(TRAIN, drawn(400, 100 + i), drawn(400, i), alarms=alarms, seed=0).share
            for i in range(10, 16)
        ]
        assert sum(shares) / 6 == pytest.approx(alarms, rel=0.25)


def test_the_gap_is_below_0_where_training_images_are_redrawn() -> None:
    noise = torch.randn(TRAIN.shape, generator=torch.Generator().manual_seed(4))
    near = copies(TRAIN, TEST, TRAIN + 0.02 * noise, **SETTINGS)
    fresh = copies(TRAIN, TEST, FRESH, **SETTINGS)
    assert near.share == 1
    assert near.gap < -0.4 < -0.1 < fresh.gap < 0.1


def test_the_gap_is_to_equally_many_of_both() -> None:
    """Against all of a larger training set it would be below 0 for fresh draws too."""
    found = copies(drawn(3000, 0), drawn(150, 1), FRESH, **SETTINGS)
    assert abs(found.gap) < 0.1
    to = [torch.cdist(FRESH, drawn(n, s)).min(1).values.mean() for n, s in ((3000, 0), (150, 1))]
    assert float(to[0] - to[1]) < -0.4
    equal = copies(drawn(150, 0), drawn(150, 1), FRESH, **SETTINGS)
    to = [torch.cdist(FRESH, drawn(150, s)).min(1).values.mean() for s in (0, 1)]
    assert equal.gap == pytest.approx(float(to[0] - to[1]), abs=1e-4)


def test_ratio_and_threshold_by_hand() -> None:
    line = torch.tensor
    train, test = line([[0.0], [10.0]]), line([[1.0], [4.0], [7.5]])
    made = line([[0.5], [10.0], [6.0], [1.0]])
    # Test images: 1 / 3, 4 / 3 (to 1), 2.5 / 3.5. Of 3 and a share of a half 2 may fall.
    found = copies(train, test, made, alarms=0.5, seed=0)
    assert found.threshold == pytest.approx(2.5 / 3.5)
    assert found.ratio.tolist() == pytest.approx([1, 0, 4 / 1.5, torch.inf])
    assert found.made.tolist() == [1]
    assert found.train.tolist() == [1]
    assert found.share == 0.25


def test_what_is_in_the_test_set_too_is_no_copy() -> None:
    train, test = torch.cat([TRAIN, FRESH[:1]]), torch.cat([TEST, FRESH[:1]])
    found = copies(train, test, FRESH[:2], **SETTINGS)
    assert found.ratio[0] == 1
    assert 0 not in found.made
    assert 0 in copies(train, TEST, FRESH[:2], **SETTINGS).made


def test_a_test_set_that_was_trained_on_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test: 20 of 400 vectors are also in train.*disjoint"):
        copies(torch.cat([TRAIN, TEST[:20]]), TEST, FRESH, **SETTINGS)


@pytest.mark.parametrize(("tested", "alarms"), [(98, 0.01), (99, 0.0), (99, 1.0), (1, 0.5)])
def test_too_few_to_calibrate_are_refused(tested: int, alarms: float) -> None:
    with pytest.raises(ValueError, match=f"alarms={alarms} with {tested} test images"):
        copies(TRAIN, TEST[:tested], FRESH, alarms=alarms, seed=0)


def test_99_test_images_calibrate_1_percent() -> None:
    found = copies(TRAIN, TEST[:99], FRESH, **SETTINGS)
    test = TEST[:99].double()
    apart = torch.cdist(test, test).fill_diagonal_(torch.inf)
    ratio = torch.cdist(test, TRAIN.double()).min(1).values / apart.min(1).values
    assert found.threshold == pytest.approx(float(ratio.min()), rel=1e-6)


def test_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(700, 3, 4, 4, generator=generator) * 2 - 1
    train, test, made = images[:300], images[300:500], images[500:].clone()
    made[7] = train[11] + 0.003  # within rounding to 8 bits
    found = copies(pixels(train), pixels(test), pixels(made), **SETTINGS)
    assert found.made[0] == 7
    assert found.train[0] == 11
    assert pixels(made).dtype == torch.uint8
    assert pixels(made).shape == (200, 48)


def test_directions_order_as_cosines() -> None:
    unit = directions(FRESH)
    cosine = torch.nn.functional.cosine_similarity(FRESH[:, None].double(), TRAIN.double(), dim=2)
    found = sets.nearest(unit, directions(TRAIN), count=1)
    assert torch.equal(found.indices[:, 0], cosine.argmax(1))
    # A copy that is brighter is one all the same.
    made = torch.cat([FRESH, 1.7 * TRAIN[5:6]])
    found_copies = copies(directions(TRAIN), directions(TEST), directions(made), **SETTINGS)
    assert found_copies.made[0] == 500
    assert found_copies.train[0] == 5


def test_blocks_and_seeds_change_the_gap_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, *_ = planted()
    state = torch.get_rng_state()
    found, again = (copies(TRAIN, TEST, made, **SETTINGS) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    other = copies(TRAIN, TEST, made, alarms=0.01, seed=1)
    monkeypatch.setattr(sets, "ROWS", 150)
    blocked = copies(TRAIN, TEST, made, **SETTINGS)
    assert found.gap == again.gap == pytest.approx(blocked.gap, rel=1e-9)
    assert found.gap != other.gap
    for it in (again, other, blocked):
        assert torch.equal(it.made, found.made)
        assert torch.equal(it.train, found.train)
        torch.testing.assert_close(it.ratio, found.ratio)

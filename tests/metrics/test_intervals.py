"""Against scipy, by their coverage, and why there is none for a Frechet distance."""

from __future__ import annotations

import statistics

import pytest
import scipy.stats
import torch
from torch import Tensor

from salon.metrics.frechet import frechet
from salon.metrics.intervals import bootstrap_mean, paired_difference, t_interval, wilson

BOOTSTRAP = {"confidence": 0.95, "draws": 1000, "seed": 0}


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (1, 20), (37, 200), (20, 20), (0, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_equals_scipy(hits: int, count: int, confidence: float) -> None:
    expected = scipy.stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    found = wilson(hits, count, confidence=confidence)
    assert found == pytest.approx((hits / count, expected.low, expected.high), abs=1e-12)


def test_wilson_covers() -> None:
    """Over the binomial law itself, and where the normal interval does not."""
    counts = range(51)
    intervals = [wilson(hits, 50, confidence=0.95) for hits in counts]
    covered, normal_covered = [], []
    shares = [i / 200 for i in range(2, 199)]
    for share in shares:
        law = scipy.stats.binom(50, share).pmf(counts)
        inside = [x.low <= share <= x.high for x in intervals]
        covered.append(float(law @ inside))
        half = [1.96 * (x.value * (1 - x.value) / 50) ** 0.5 for x in intervals]
        inside = [abs(x.value - share) <= h for x, h in zip(intervals, half, strict=True)]
        normal_covered.append(float(law @ inside))
    assert statistics.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.88
    assert min(normal_covered) < 0.5


def test_t_interval_equals_scipy() -> None:
    values = [0.61, 0.55, 0.7, 0.58, 0.64]
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = t_interval(values, confidence=0.9)
    assert found == pytest.approx((statistics.mean(values), expected.low, expected.high))


def test_bootstrap_of_a_mean_is_its_normal_interval() -> None:
    values = normal(400, seed=0) * 3 + 1
    found = bootstrap_mean(values, **BOOTSTRAP)
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)
    narrow = bootstrap_mean(values, confidence=0.5, draws=1000, seed=0)
    assert found.low < narrow.low < narrow.high < found.high
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.674 / 1.96, rel=0.1)


def test_bootstrap_covers() -> None:
    covered = 0
    for seed in range(200):
        found = bootstrap_mean(normal(60, seed=seed).exp(), confidence=0.9, draws=200, seed=seed)
        covered += found.low <= float(torch.tensor(0.5).exp()) <= found.high
    assert 0.80 <= covered / 200 <= 0.95  # of a skewed law; percentiles fall short of 0.90


def test_images_of_one_prompt_are_drawn_together() -> None:
    """Four images of each prompt that are the same are worth no more than one."""
    prompts = normal(100, 1, seed=0)
    once = bootstrap_mean(prompts[:, 0], **BOOTSTRAP)
    assert bootstrap_mean(prompts.expand(100, 4), **BOOTSTRAP) == pytest.approx(once)
    apart = bootstrap_mean(prompts.expand(100, 4).flatten(), **BOOTSTRAP)
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_pairs_are_narrower_where_prompts_are_hard_for_both() -> None:
    hard = normal(200, 1, seed=0)
    one = hard + 0.3 * normal(200, 4, seed=1) + 0.1
    other = hard + 0.3 * normal(200, 2, seed=2)
    found = paired_difference(one, other, **BOOTSTRAP)
    shuffled = paired_difference(one, other.roll(1, 0), **BOOTSTRAP)
    assert found.value == pytest.approx(float(one.mean() - other.mean()))
    assert found.value == pytest.approx(shuffled.value)
    assert found.high - found.low < 0.3 * (shuffled.high - shuffled.low)
    assert found.low > 0
    assert found.p == pytest.approx(2 / 1001)
    assert shuffled.low < 0 < shuffled.high
    assert shuffled.p > 0.05


def test_the_difference_is_of_the_first_less_the_second() -> None:
    one, other = normal(80, seed=0) + 0.25, normal(80, seed=1)
    found, turned = (
        paired_difference(one, other, **BOOTSTRAP),
        paired_difference(other, one, **BOOTSTRAP),
    )
    assert turned == pytest.approx((-found.value, -found.high, -found.low, found.p), abs=1e-9)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    p = [
        paired_difference(
            normal(50, seed=i), normal(50, seed=1000 + i), confidence=0.95, draws=200, seed=i
        ).p
        for i in range(200)
    ]
    for level in (0.1, 0.5):
        assert sum(x <= level for x in p) / 200 == pytest.approx(level, abs=0.11)
    assert min(p) >= 2 / 201
    assert max(p) <= 1
    assert paired_difference(normal(9, seed=0), normal(9, seed=0), **BOOTSTRAP).p == 1


def test_p_agrees_with_the_interval() -> None:
    for seed in range(60):
        one, other = normal(40, seed=seed) + 0.4, normal(40, seed=1000 + seed)
        found = paired_difference(one, other, **BOOTSTRAP)
        if abs(found.p - 0.05) > 0.005:
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_the_bootstrap_of_a_frechet_distance_is_invalid() -> None:
    """Drawn with replacement the distance doubles its bias, and its interval misses the truth, the
    distance itself and what fresh sets give. So none is offered."""
    real = normal(4000, 24, seed=0)
    made = [normal(300, 24, seed=1 + seed) for seed in range(20)]
    fresh = torch.tensor([frechet(real, x) for x in made], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    naive = torch.tensor(
        [
            frechet(real, made[0][torch.randint(300, (300,), generator=generator)])
            for _ in range(100)
        ],
        dtype=torch.float64,
    )
    assert naive.mean() > 1.7 * fresh.mean()
    assert naive.quantile(0.025) > fresh.max() >= fresh[0]
    # By seeds: the sets are independent, so Student's interval holds.
    found = t_interval(fresh[:5], confidence=0.95)
    assert found.low < fresh[5:].mean() < found.high


def test_repeat_by_their_seed_and_leave_the_global_generator() -> None:
    values = normal(50, seed=0)
    state = torch.get_rng_state()
    one = bootstrap_mean(values, **BOOTSTRAP)
    assert one == bootstrap_mean(values, **BOOTSTRAP)
    assert one != bootstrap_mean(values, **{**BOOTSTRAP, "seed": 1})
    two = paired_difference(values, values.roll(1), **BOOTSTRAP)
    assert two == paired_difference(values, values.roll(1), **BOOTSTRAP)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="hits=3 of count=2"):
        wilson(3, 2, confidence=0.95)
    with pytest.raises(ValueError, match="confidence=95"):
        wilson(1, 2, confidence=95)
    with pytest.raises(ValueError, match=r"\(1,\)"):
        t_interval([0.5], confidence=0.95)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        t_interval(torch.zeros(2, 3), confidence=0.95)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean([0.5, float("nan")], **BOOTSTRAP)
    with pytest.raises(ValueError, match="draws=0"):
        bootstrap_mean([0.5, 1.0], **{**BOOTSTRAP, "draws": 0})
    with pytest.raises(ValueError, match="one has 3 prompts and other 2"):
        paired_difference([1.0, 2, 3], [1.0, 2], **BOOTSTRAP)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from salon.metrics.retrieval import r_precision, ranked_first


def drawn(count: int, seed: int, width: int = 16) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def texts(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def settings(count: int, **changed: Any) -> dict[str, Any]:
    return {"texts": texts(count), "distractors": 99, "hard": None, "seed": 0} | changed


def test_perfect_and_chance() -> None:
    captions = drawn(2000, 0)
    assert r_precision(captions, captions, **settings(2000)) == 1
    # 1 % of 2,000, three standard errors of 0.22 %.
    assert 0.003 < r_precision(drawn(2000, 1), captions, **settings(2000)) < 0.017
    assert r_precision(-captions, captions, **settings(2000)) == 0


def test_all_distractors_is_the_rank_among_all() -> None:
    captions = drawn(120, 0)
    images = captions + 1.5 * drawn(120, 1)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], captions, dim=2)
    expected = cosine.argmax(1).eq(torch.arange(120)).double()
    assert 0.2 < expected.mean() < 0.8
    assert torch.equal(ranked_first(images, captions, **settings(120, distractors=119)), expected)


def test_the_expected_share_is_that_of_fewer_distractors() -> None:
    captions = drawn(400, 0)
    images = captions + 1.5 * drawn(400, 1)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], captions, dim=2)
    beaten = (cosine < cosine.diagonal()[:, None]).sum(1)  # of the 399 others
    expected = ((beaten / 399) * ((beaten - 1) / 398)).mean()  # both of 2 drawn ones
    found = [
        r_precision(images, captions, **settings(400, distractors=2, seed=seed))
        for seed in range(10)
    ]
    assert sum(found) / 10 == pytest.approx(float(expected), abs=0.01)


def test_lengths_do_not_count() -> None:
    captions = drawn(200, 0)
    images = captions + 2 * drawn(200, 1)
    scales = torch.rand(200, 1, generator=torch.Generator().manual_seed(2)) * 9 + 0.1
    one = r_precision(images, captions, **settings(200))
    assert one == r_precision(images * 3, captions * scales, **settings(200))
    assert 0.2 < one < 0.8


def test_equal_embeddings_score_chance() -> None:
    same = torch.ones(150, 16)
    assert r_precision(same, same, **settings(150)) == pytest.approx(0.01)
    assert r_precision(drawn(150, 0), same, **settings(150)) == pytest.approx(0.01)


def test_a_caption_of_the_same_text_is_no_distractor() -> None:
    """Each text stands twice: as a distractor of itself it would tie with every own caption."""
    captions = drawn(60, 0).repeat(2, 1)
    twice = texts(60) * 2
    assert r_precision(captions, captions, **settings(120, texts=twice, distractors=59)) == 1
    told_apart = r_precision(captions, captions, **settings(120, distractors=119))
    assert told_apart == pytest.approx(0.5)
    with pytest.raises(ValueError, match="distractors=60 for 60 different captions: from 1 to 59"):
        r_precision(captions, captions, **settings(120, texts=twice, distractors=60))


def test_hard_distractors_are_among_them() -> None:
    """Image i is drawn from caption i + 1: only who meets that one fails."""
    captions = drawn(300, 0, width=512)
    images = captions + 0.5 * captions.roll(-1, 0)
    assert r_precision(images, captions, **settings(300)) == 1
    images = 0.5 * captions + captions.roll(-1, 0)
    random = r_precision(images, captions, **settings(300))
    assert random == pytest.approx(1 - 99 / 299, abs=0.1)
    following = torch.arange(300).roll(-1)[:, None]
    assert r_precision(images, captions, **settings(300, hard=following)) == 0
    # As many random ones fill up: of 299, 99 are there in any case.
    alone = settings(300, hard=following, distractors=1)
    assert r_precision(captions + 0.1 * images, captions, **alone) == 1
    none = torch.zeros(300, 0, dtype=torch.long)
    assert r_precision(images, captions, **settings(300, hard=none)) == random


def test_hard_and_random_distractors_are_all_different() -> None:
    """Of 30 texts all 29 others are there, so also the one that beats each image's own; were a hard
    one drawn a second time, another would be left out."""
    captions = drawn(30, 0, width=512)
    images = 0.5 * captions + captions.roll(-1, 0)
    hard = torch.stack([(torch.arange(2, 12) + i) % 30 for i in range(30)])
    for seed in range(5):
        everyone = settings(30, distractors=29, hard=hard, seed=seed)
        assert r_precision(images, captions, **everyone) == 0
    fewer = settings(30, distractors=15, hard=hard)
    assert 0 < r_precision(images, captions, **fewer) < 1


@pytest.mark.parametrize(
    ("hard", "match"),
    [
        (torch.zeros(3, 1, dtype=torch.long), r"hard is of shape \(3, 1\)"),
        (torch.arange(200)[:, None], r"hard\[0\]=\[0\].*own \('caption 0'\)"),
        (torch.full((200, 2), 7), r"hard\[0\]=\[7, 7\].*twice"),
        (torch.full((200, 1), 200), r"hard\[0\]=\[200\]: indices of 200"),
        (torch.full((200, 1), -1), r"hard\[0\]=\[-1\]: indices of 200"),
    ],
)
def test_hard_captions_that_are_refused(hard: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        r_precision(drawn(200, 0), drawn(200, 0), **settings(200, hard=hard))


def test_as_many_of_each_are_expected() -> None:
    with pytest.raises(ValueError, match="200 images, 200 captions and 199 texts"):
        r_precision(drawn(200, 0), drawn(200, 0), **settings(199))


def test_repeats_by_its_seed_and_leaves_the_global_generator() -> None:
    captions = drawn(300, 0)
    images = captions + 2 * drawn(300, 1)
    state = torch.get_rng_state()
    one = ranked_first(images, captions, **settings(300, distractors=20))
    assert torch.equal(one, ranked_first(images, captions, **settings(300, distractors=20)))
    other = ranked_first(images, captions, **settings(300, distractors=20, seed=1))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)

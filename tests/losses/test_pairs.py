"""Wrong pairs over many batches of captions that come again."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from salon.losses.pairs import PAIRS, roll, strict

WEIGHTS = [8, 4, 2, 1, 1]  # of five captions
CAPTIONS = ["red circle", "red square", "blue circle", "blue square", "green circle"]
BATCHES = 4000


def batches() -> Iterator[list[str]]:
    draw = random.Random(0)
    for _ in range(BATCHES):
        yield draw.choices(CAPTIONS, WEIGHTS, k=draw.randint(2, 33))


def test_rolling_never_pairs_a_sample_with_itself_and_uses_each_caption_once() -> None:
    pairs = 0
    for captions in batches():
        index, _ = roll(captions)
        assert index.dtype == torch.long
        assert all(i != j for i, j in enumerate(index.tolist()))
        assert sorted(index.tolist()) == list(range(len(captions)))
        pairs += len(captions)
    assert pairs > 50_000


def test_rolling_tells_its_collisions() -> None:
    equal = pairs = 0
    for captions in batches():
        index, same = roll(captions)
        count = sum(captions[i] == captions[j] for i, j in enumerate(index.tolist()))
        assert same.shape == ()
        assert same.item() == pytest.approx(count / len(captions), abs=1e-6)
        equal += count
        pairs += len(captions)
    expected = sum((w / sum(WEIGHTS)) ** 2 for w in WEIGHTS)
    assert equal / pairs == pytest.approx(expected, abs=0.01)


def test_strict_never_pairs_equal_captions() -> None:
    pairs = 0
    for captions in batches():
        if len(set(captions)) < 2:
            continue
        index, same = strict(captions)
        assert index.dtype == torch.long
        assert len(index) == len(captions)
        assert all(captions[i] != captions[j] for i, j in enumerate(index.tolist()))
        assert same.item() == 0
        pairs += len(captions)
    assert pairs > 50_000


def test_strict_goes_no_further_than_it_must() -> None:
    assert strict(["a", "a", "b", "a", "b", "b"]).index.tolist() == [2, 2, 3, 4, 0, 0]
    assert strict(["a", "a", "a", "b"]).index.tolist() == [3, 3, 3, 0]
    different = [str(i) for i in range(9)]
    assert torch.equal(strict(different).index, roll(different).index)


def test_the_index_picks_rows() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert rows[roll(["a", "b", "c"]).index].tolist() == [[2, 3], [4, 5], [0, 1]]


def test_batches_that_have_no_wrong_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch of 3 are 'a red circle'"):
        strict(["a red circle"] * 3)
    with pytest.raises(ValueError, match=r"batch_size=2"):
        roll(["a red circle"])
    with pytest.raises(ValueError, match=r"batch of 1 "):
        strict(["a red circle"])


def test_they_are_found_by_name() -> None:
    assert sorted(PAIRS) == ["roll", "strict"]
    assert PAIRS["roll"] is roll
    assert PAIRS["strict"] is strict

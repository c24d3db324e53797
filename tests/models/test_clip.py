"""The contrastive loss in closed form."""

import math

import torch
from torch.nn import functional as F

import toy
from salon.models.clip import MAX_LOGIT_SCALE, Clip, contrastive, equal


def test_equal_captions() -> None:
    assert equal(["a", "b", "a"]).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_without_repeats_it_is_clips_loss() -> None:
    logits = torch.randn(5, 5, dtype=torch.float64)
    right = torch.arange(5)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(contrastive(logits, list("abcde")), expected)


def test_equal_logits_give_the_logarithm_of_the_batch() -> None:
    loss = contrastive(torch.zeros(4, 4), list("aabc"))
    assert math.isclose(loss, math.log(4), rel_tol=1e-6)


def test_repeated_captions_are_both_right() -> None:
    """Two images of one caption: scoring both equally is as good as it gets, ln 2 a row."""
    logits = torch.full((4, 4), -50.0)
    logits[:2, :2] = logits[2:, 2:] = 50.0
    assert math.isclose(contrastive(logits, list("aabb")), math.log(2), rel_tol=1e-5)


def test_a_scale_beyond_its_limit_is_brought_back_before_it_is_used() -> None:
    """As where a run goes on from a checkpoint that was saved before the batch's end."""
    losses = []
    for scale in (MAX_LOGIT_SCALE, MAX_LOGIT_SCALE + 1):
        model = Clip(
            tower=toy.clip(), vocabulary_captions=1, optimizer=torch.optim.Adam,
            schedule=lambda *_: 1.0,
        )  # fmt: skip
        model.log = lambda *_, **__: None  # type: ignore[method-assign]
        with torch.no_grad():
            model.tower.clip.logit_scale.fill_(scale)
        losses.append(float(model.training_step(toy.batch(0), 0)))
    assert losses[0] == losses[1]

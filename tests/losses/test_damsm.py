"""The DAMSM's scores and losses: against plain loops, and in closed form."""

import math

import pytest
import torch
from torch import Tensor

from salon.losses.damsm import both_ways, damsm, sentence_scores, twins, word_scores
from salon.types import Text

GAMMAS = {"gamma1": 4.0, "gamma2": 5.0}
LENGTHS = [5, 2, 7, 1]  # words of four captions, mixed
N, T, R, D = len(LENGTHS), max(LENGTHS), 6, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def some() -> tuple[Tensor, Tensor, Tensor]:
    """Words, mask and regions; what stands on padding is not zero."""
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    words = torch.randn(N, T, D, dtype=torch.float64, requires_grad=True)
    return words, mask, torch.randn(N, R, D, dtype=torch.float64, requires_grad=True)


def looped(words: Tensor, mask: Tensor, regions: Tensor, *, gamma1: float, gamma2: float) -> Tensor:
    """Equations 7 to 10 with the paper's factor 1 / gamma2, pair by pair and word by word."""
    rows = []
    for image in regions:
        row = []
        for caption, length in zip(words, mask.sum(1), strict=True):
            caption = caption[:length]
            s = torch.stack([torch.stack([e @ v for v in image]) for e in caption])  # (T, R)
            share = s.exp() / s.exp().sum(0, keepdim=True)
            total = torch.zeros((), dtype=s.dtype)
            for word, e in enumerate(caption):
                alpha = (gamma1 * share[word]).exp()
                alpha = alpha / alpha.sum()
                assert math.isclose(float(alpha.sum().detach()), 1)
                c = sum(a * v for a, v in zip(alpha, image, strict=True))
                total = total + (gamma2 * (c @ e) / (c.norm() * e.norm())).exp()
            row.append(total.log() / gamma2)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_all_pairs_at_once_are_the_loops_with_their_gradients() -> None:
    words, mask, regions = some()
    weights = torch.randn(N, N, dtype=torch.float64)
    gradients = []
    for score, factor in ((word_scores, 1.0), (looped, GAMMAS["gamma2"])):
        scores = factor * score(words, mask, regions, **GAMMAS)
        gradients.append((scores, *torch.autograd.grad((scores * weights).sum(), (words, regions))))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_rows_are_images_and_columns_captions() -> None:
    words, mask, regions = some()
    scores = word_scores(words, mask, regions[:3], **GAMMAS)
    assert scores.shape == (3, N)
    one = word_scores(words[1:2], mask[1:2], regions[2:3], **GAMMAS)
    torch.testing.assert_close(scores[2, 1], one[0, 0])


@pytest.mark.parametrize("length", [1, 4])
def test_perfect_words_score_gamma2_and_the_logarithm_of_their_number(length: int) -> None:
    region = torch.randn(1, 1, D)
    words = region.expand(1, length, D) * torch.rand(1, length, 1).add(0.1)
    score = word_scores(words, torch.ones(1, length, dtype=torch.bool), region, **GAMMAS)
    assert math.isclose(score.item(), 5 + math.log(length), rel_tol=1e-5)


def test_the_order_of_regions_and_words_does_not_matter() -> None:
    words, mask, regions = some()
    scores = word_scores(words, mask, regions, **GAMMAS)
    torch.testing.assert_close(
        word_scores(words, mask, regions[:, torch.randperm(R)], **GAMMAS), scores
    )
    order = torch.randperm(T)
    torch.testing.assert_close(
        word_scores(words[:, order], mask[:, order], regions, **GAMMAS), scores
    )


def test_padding_does_not_matter() -> None:
    """Neither what stands there, nor how much of it there is."""
    words, mask, regions = some()
    scores = word_scores(words, mask, regions, **GAMMAS)
    other = words.detach().clone()
    other[~mask] = 100 * torch.randn(int((~mask).sum()), D, dtype=torch.float64)
    torch.testing.assert_close(word_scores(other, mask, regions, **GAMMAS), scores)
    more = torch.cat([words, torch.zeros(N, 3, D, dtype=torch.float64)], dim=1)
    wider = torch.cat([mask, torch.zeros(N, 3, dtype=torch.bool)], dim=1)
    longer = word_scores(more, wider, regions, **GAMMAS)
    torch.testing.assert_close(longer, scores)
    (gradient,) = torch.autograd.grad(longer.sum(), more)
    assert gradient.isfinite().all()
    assert not gradient[~wider].any()


def test_the_codes_gamma3_of_10_is_the_papers_50() -> None:
    words, mask, regions = some()
    same = torch.zeros(N, N, dtype=torch.bool)
    code = both_ways(word_scores(words, mask, regions, **GAMMAS), same, gamma3=10)
    paper = both_ways(looped(words, mask, regions, **GAMMAS), same, gamma3=50)
    torch.testing.assert_close(code, paper)


def test_sentences_are_compared_by_direction() -> None:
    sentences, whole = torch.randn(4, D), torch.randn(3, D)
    scores = sentence_scores(sentences, whole)
    assert scores.shape == (3, 4)
    torch.testing.assert_close(scores, sentence_scores(7 * sentences, 0.2 * whole))
    expected = whole[1] @ sentences[2] / (whole[1].norm() * sentences[2].norm())
    torch.testing.assert_close(scores[1, 2], expected)


def test_equal_scores_give_the_logarithm_of_the_batch_each_way() -> None:
    same = torch.zeros(5, 5, dtype=torch.bool)
    loss = both_ways(torch.full((5, 5), 0.3), same, gamma3=10)
    assert math.isclose(loss, 2 * math.log(5), rel_tol=1e-6)


def test_both_directions_count() -> None:
    """Captions that all images like are told apart by images alone, and the other way round."""
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    same = torch.zeros(2, 2, dtype=torch.bool)
    to_captions = (math.log1p(math.e) + math.log1p(1 / math.e)) / 2
    assert math.isclose(both_ways(scores, same, gamma3=1), to_captions + math.log(2), rel_tol=1e-5)
    assert math.isclose(
        both_ways(scores.T, same, gamma3=1), to_captions + math.log(2), rel_tol=1e-5
    )


def test_twins() -> None:
    found = twins(["a", "b", "a"], torch.device("cpu"))
    assert found.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    assert not twins([4, 5], torch.device("cpu")).any()


def test_pairs_of_equal_captions_do_not_count() -> None:
    same = twins(list("abac"), torch.device("cpu"))
    scores = torch.randn(4, 4, requires_grad=True)
    loss = both_ways(scores, same, gamma3=10)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[same].any()
    changed = scores.detach().masked_fill(same, 50.0)
    torch.testing.assert_close(both_ways(changed, same, gamma3=10), loss.detach())
    changed[0, 0] += 1  # the diagonal always counts
    assert both_ways(changed, same, gamma3=10) < loss


def test_a_batch_of_one_caption_has_nothing_to_learn() -> None:
    scores = torch.randn(3, 3, requires_grad=True)
    loss = both_ways(scores, twins("aaa", torch.device("cpu")), gamma3=10)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient.any()


def test_the_loss_is_of_words_and_of_sentences() -> None:
    words, mask, regions = some()
    pooled, whole = torch.randn(2, N, D, dtype=torch.float64)
    same = twins("abca", torch.device("cpu"))
    found = damsm(Text(words, mask, pooled), regions, whole, same, gammas=(4.0, 5.0, 10.0))
    expected = both_ways(word_scores(words, mask, regions, **GAMMAS), same, gamma3=10)
    torch.testing.assert_close(found.words, expected)
    torch.testing.assert_close(
        found.sentence, both_ways(sentence_scores(pooled, whole), same, gamma3=10)
    )
    torch.testing.assert_close(found.total, found.words + found.sentence)

"""How well images and captions match, by words and as a whole: the losses of the DAMSM.

Xu et al. 2018, "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative
Adversarial Networks", section 3.2. Each image of a batch is scored against each caption, all pairs
at once.

    word score      every word looks for its regions; how alike are what it finds and the word
    sentence score  the cosine of the caption's vector and the image's
    loss            cross-entropy of the scores over the batch, from images to captions and back

The paper's word score is (1 / gamma2) log sum exp(gamma2 cos). The authors' code leaves the factor
1 / gamma2 away, and its published gamma3 = 10 belongs to that form, which is the one here; it
equals the paper's at gamma3 = 10 gamma2 = 50.

N captions, M images, T words, R regions, D features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.types import Text

EPS = 1e-8  # of a cosine's denominator


class Matching(NamedTuple):
    """The parts of the loss; each is the sum of both directions."""

    words: Tensor  # ()
    sentence: Tensor  # ()

    @property
    def total(self) -> Tensor:
        return self.words + self.sentence


def damsm(
    text: Text,
    regions: Tensor,
    whole: Tensor,
    same: Tensor,
    *,
    gammas: tuple[float, float, float],  # sharpness of attention, of words, of the batch
) -> Matching:
    """Of N captions (tokens (N, T, D), pooled (N, D)) and their images, regions (N, R, D) and
    whole (N, D).

    `same` (N, N) is True for pairs that are not the diagonal and yet match: see `twins`.
    """
    gamma1, gamma2, gamma3 = gammas
    words = word_scores(text.tokens, text.mask, regions, gamma1=gamma1, gamma2=gamma2)
    sentence = sentence_scores(text.pooled, whole)
    return Matching(both_ways(words, same, gamma3=gamma3), both_ways(sentence, same, gamma3=gamma3))


def word_scores(
    words: Tensor, mask: Tensor, regions: Tensor, *, gamma1: float, gamma2: float
) -> Tensor:
    """The word score of every image (M, R, D) with every caption (N, T, D), (M, N).

    Equations 7 to 10, the last without its factor 1 / gamma2. `mask` (N, T) is True for words.
    """
    count, length = mask.shape
    s = words.flatten(0, 1) @ regions.transpose(1, 2)  # (M, NT, R), equation 7
    # Each region shares itself out among a caption's words, equation 8;
    s = s.unflatten(1, (count, length)).masked_fill(~mask[:, :, None], -torch.inf)  # (M, N, T, R)
    # then each word shares itself out among the regions, equation 9.
    alpha = (gamma1 * s.softmax(2)).softmax(3).flatten(1, 2)  # (M, NT, R)
    found = alpha @ regions  # (M, NT, D)
    directions = F.normalize(words, dim=2).flatten(0, 1)  # (NT, D)
    # Not `cosine_similarity`, which copies both sides to (M, NT, D).
    cosine = (found * directions).sum(2) / found.norm(dim=2).clamp_min(EPS)  # (M, NT)
    logits = (gamma2 * cosine).unflatten(1, (count, length)).masked_fill(~mask, -torch.inf)
    return logits.logsumexp(2)  # (M, N), equation 10


def sentence_scores(sentences: Tensor, whole: Tensor) -> Tensor:
    """Cosines of every image (M, D) with every caption (N, D), (M, N)."""
    return F.normalize(whole, dim=1) @ F.normalize(sentences, dim=1).T


def both_ways(scores: Tensor, same: Tensor, *, gamma3: float) -> Tensor:
    """Cross-entropy of each image's caption and of each caption's image, ().

    Equations 11 to 13. `scores` (N, N), row i is image i; pairs that are `same` do not count.
    """
    logits = (gamma3 * scores).masked_fill(same, -torch.inf)
    right = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)


def twins(labels: Sequence[Hashable], device: torch.device) -> Tensor:
    """Pairs of different places with the same label, a caption or a class, (N, N) bool."""
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    ids = torch.tensor([number[label] for label in labels], device=device)
    return (ids[:, None] == ids).fill_diagonal_(False)

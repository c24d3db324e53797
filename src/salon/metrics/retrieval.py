"""R-precision: does an image find its own caption among others? Xu et al. 2018 (AttnGAN).

In whatever joint space the embeddings are from. Never that which a model was trained in: it scores
above real images there. Random captions seldom differ in one word only; `hard` gives those that do.

N images and N captions of E features, image i drawn from caption i; D distractors, H of them hard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.metrics.sets import check


def r_precision(
    images: Tensor,  # (N, E)
    captions: Tensor,  # (N, E)
    *,
    texts: Sequence[str],  # the N captions; equal ones are never distractors of each other
    distractors: int,  # 99 in the paper
    hard: Tensor | None,  # (N, H) indices of captions to be among them; None = all are random
    seed: int,
) -> float:
    """Share of images whose own caption is nearest by cosine; 1 / (D + 1) by chance."""
    hits = ranked_first(
        images, captions, texts=texts, distractors=distractors, hard=hard, seed=seed
    )
    return float(hits.mean())


def ranked_first(
    images: Tensor,
    captions: Tensor,
    *,
    texts: Sequence[str],
    distractors: int,
    hard: Tensor | None,
    seed: int,
) -> Tensor:
    """`r_precision` image by image, (N,) in [0, 1]: a tie counts as its chance in a fair lot, so
    that embeddings which are all the same score chance and not 1."""
    check(images=images, captions=captions, least=1)
    if not len(images) == len(captions) == len(texts):
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions and {len(texts)} texts: as many of "
            "each were expected, image i drawn from caption i"
        )
    others = _others(texts, distractors, hard, seed).to(images.device)  # (N, D)
    image, caption = (F.normalize(x.double(), dim=1) for x in (images, captions))
    hits = []
    for i, row in enumerate(others):
        own, rest = image[i] @ caption[i], caption[row] @ image[i]  # (), (D,)
        # Equal embeddings may score unequal in the last digit, by two ways of summing.
        gap = rest - own
        ties = (gap.abs() <= 1e-12).sum()
        hits.append((gap <= 1e-12).all().double() / (1 + ties))
    return torch.stack(hits)


def _others(texts: Sequence[str], distractors: int, hard: Tensor | None, seed: int) -> Tensor:
    """(N, D) indices of captions, each row of different texts, none of them the row's own."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    distinct = list(first.values())
    given = _hard(texts, hard, distractors)
    if not 1 <= distractors < len(distinct):
        raise ValueError(
            f"distractors={distractors} for {len(distinct)} different captions: from 1 to "
            f"{len(distinct) - 1} was expected; score more prompts or lower distractors"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for text, row in zip(texts, given, strict=True):
        taken = {text} | {texts[i] for i in row}
        # As many as are needed even where all that are taken are among them.
        drawn = torch.randperm(len(distinct), generator=generator)[: distractors + 1]
        free = [i for i in (distinct[j] for j in drawn.tolist()) if texts[i] not in taken]
        rows.append((row + free)[:distractors])
    return torch.tensor(rows)


def _hard(texts: Sequence[str], hard: Tensor | None, distractors: int) -> list[list[int]]:
    if hard is None:
        return [[] for _ in texts]
    if hard.ndim != 2 or len(hard) != len(texts) or hard.shape[1] > distractors:
        raise ValueError(
            f"hard is of shape {tuple(hard.shape)}, but ({len(texts)}, H) with H up to "
            f"distractors={distractors} was expected"
        )
    rows: list[list[int]] = hard.tolist()
    for i, row in enumerate(rows):
        if not all(0 <= j < len(texts) for j in row):
            raise ValueError(f"hard[{i}]={row}: indices of {len(texts)} captions were expected")
        if len({texts[i], *(texts[j] for j in row)}) < len(row) + 1:
            raise ValueError(
                f"hard[{i}]={row}: a text is the image's own ({texts[i]!r}) or stands there twice; "
                "captions that differ from it and from one another were expected"
            )
    return rows

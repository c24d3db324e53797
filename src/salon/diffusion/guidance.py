"""Classifier-free guidance (Ho & Salimans 2022), and the captions without meaning it needs.

x0 = u + scale (c - u), with c under the caption and u under the null text. That is their Equation
6 with scale = 1 + w; being linear, it reads the same for x0, eps and v at one noise level. In an
interval of noise levels only: Kynkäänniemi et al. 2024.

N images, L tokens, L0 tokens of the null text, D channels, D' of the pooled vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from salon.diffusion.schedule import Denoise
from salon.types import Text


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Two denoisers as one; at scale 1 and 0 it is one of the two, and the other never runs."""
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional

    def denoise(y: Tensor, sigma: Tensor) -> Tensor:
        u = unconditional(y, sigma)
        return u + scale * (conditional(y, sigma) - u)

    return denoise


def guided(
    denoise: Callable[[Tensor, Tensor, Text], Tensor],
    text: Text,  # N captions
    null: Text,  # 1 or N
    scale: float,
    interval: tuple[float, float] | None,  # guides where lo < sigma <= hi; None = everywhere
) -> Denoise:
    """`classifier_free` over one network, with both passes in one batch of 2N.

    Outside the interval the caption alone is asked, in a batch of N.
    """
    null = _repeat(null, len(text.tokens))
    both = concat(text, null)

    def conditional(y: Tensor, sigma: Tensor) -> Tensor:
        return denoise(y, sigma, text)

    def unconditional(y: Tensor, sigma: Tensor) -> Tensor:
        return denoise(y, sigma, null)

    def paired(y: Tensor, sigma: Tensor) -> Tensor:
        c, u = denoise(torch.cat([y, y]), sigma, both).chunk(2)  # (2N, ...) -> (N, ...) twice
        return u + scale * (c - u)

    inside = conditional if scale == 1 else unconditional if scale == 0 else paired
    if interval is None:
        return inside
    lo, hi = interval
    if not 0 <= lo < hi:
        raise ValueError(
            f"interval={interval} holds no noise level; give (lo, hi) with 0 <= lo < hi, or null "
            "to guide everywhere"
        )
    return lambda y, sigma: (inside if lo < sigma <= hi else conditional)(y, sigma)


def drop_condition(text: Text, null: Text, drop: Tensor) -> Text:
    """The null text in place of the captions where `drop` (N,) is True, for training.

    Every caption is padded to max(L, L0), dropped or not: the shape does not depend on chance.
    """
    length = max(text.tokens.shape[1], null.tokens.shape[1])
    text, null = _padded(text, length), _padded(null, length)
    return Text(
        tokens=torch.where(drop[:, None, None], null.tokens, text.tokens),  # (N, max(L, L0), D)
        mask=torch.where(drop[:, None], null.mask, text.mask),  # (N, max(L, L0))
        pooled=torch.where(drop[:, None], null.pooled, text.pooled),  # (N, D')
    )


def concat(*texts: Text) -> Text:
    """One batch of all, padded to the longest."""
    length = max(text.tokens.shape[1] for text in texts)
    return Text(*map(torch.cat, zip(*(_padded(text, length) for text in texts), strict=True)))


def _padded(text: Text, length: int) -> Text:
    more = length - text.tokens.shape[1]
    return text._replace(
        tokens=pad(text.tokens, (0, 0, 0, more)),  # (N, length, D)
        mask=pad(text.mask, (0, more), value=False),  # (N, length)
    )


def _repeat(text: Text, n: int) -> Text:
    return Text(*(part.expand(n, *part.shape[1:]) for part in text))

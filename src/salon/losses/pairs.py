"""Wrong pairs: each image of a batch with another sample's caption.

The matching-aware discriminator of Reed et al. 2016 learns to refuse them. A pair of equal captions
tells it to refuse a match, so their share is reported.

N captions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class WrongPairs(NamedTuple):
    # (N,) long: caption index[i] goes with image i
    index: Tensor  # type: ignore[assignment]  # tuple.index gives way
    same: Tensor  # () share of the pairs whose captions are equal


def _pairs(captions: Sequence[str], index: list[int]) -> WrongPairs:
    same = sum(captions[i] == captions[j] for i, j in enumerate(index)) / len(index)
    return WrongPairs(torch.tensor(index), torch.tensor(same))


def roll(captions: Sequence[str]) -> WrongPairs:
    """i with i + 1, equal or not: what AttnGAN and DF-GAN do."""
    n = len(captions)
    if n < 2:
        raise ValueError("wrong pairs: a batch of 1 has none; expected batch_size=2 or more")
    return _pairs(captions, [(i + 1) % n for i in range(n)])


def strict(captions: Sequence[str]) -> WrongPairs:
    """i with the next sample, cyclically, that has another caption."""
    n = len(captions)
    if len(set(captions)) < 2:
        raise ValueError(
            f"wrong pairs: all captions of a batch of {n} are {captions[0]!r}; expected two "
            "different ones at least. Say a larger batch_size, or choose the pairs of `roll`"
        )
    index = []
    for i, caption in enumerate(captions):
        following = ((i + step) % n for step in range(1, n))
        index.append(next(j for j in following if captions[j] != caption))
    return _pairs(captions, index)


Choose = Callable[[Sequence[str]], WrongPairs]
PAIRS: dict[str, Choose] = {"roll": roll, "strict": strict}


def choose(name: str) -> Choose:
    """Raises ValueError for a name that is not in `PAIRS`."""
    if name not in PAIRS:
        raise ValueError(f"model.pairs={name!r}; expected one of {', '.join(PAIRS)}")
    return PAIRS[name]

"""What every family asks of a text tower.

N captions, L tokens, D the tower's width, D' the width of the pooled vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.types import Text


class TextTower(nn.Module, ABC):
    """A map from captions to `Text`, with a memory for captions that come again."""

    width: int  # D, of the tokens
    pooled_width: int  # D'
    source: str | None = None  # where its weights come from, if not from a run of ours

    def __init__(self, *, remember: int) -> None:
        super().__init__()
        self._remember = remember  # captions, at most; the longest unused is forgotten first
        self._memory: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self.register_load_state_dict_post_hook(lambda *_: self._memory.clear())

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> Text:
        """Tokens (N, L, D), mask (N, L), pooled (N, D'), with gradients."""

    def forward(self, captions: Sequence[str]) -> Text:
        """`encode` of a frozen tower: no gradients, and each caption is computed once."""
        memory = self._memory
        unknown = [c for c in dict.fromkeys(captions) if c not in memory]
        if unknown:
            # What is remembered serves training and sampling alike, inside autocast and outside.
            with torch.no_grad(), torch.autocast(_device(self), enabled=False):
                tokens, mask, pooled = self.encode(unknown)
            for caption, states, length, vector in zip(
                unknown, tokens, mask.sum(1).tolist(), pooled, strict=True
            ):
                memory[caption] = (states[:length].clone(), vector.clone())
        found = []
        for caption in captions:
            memory.move_to_end(caption)
            found.append(memory[caption])
        while len(memory) > self._remember:
            memory.popitem(last=False)
        return _padded(found)

    def forget(self) -> None:
        """As if no caption had been seen yet."""
        self._memory.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> TextTower:
        self._memory.clear()  # moved to another device or dtype
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": OrderedDict()}

    def learn_vocabulary(self, captions: Iterator[str]) -> None:
        """Called once before a tower is trained; for towers whose vocabulary is a choice."""
        del captions


def _device(tower: nn.Module) -> str:
    return next(tower.parameters(), torch.empty(0)).device.type


def _padded(found: Sequence[tuple[Tensor, Tensor]]) -> Text:
    states = [tokens for tokens, _ in found]
    tokens = nn.utils.rnn.pad_sequence(states, batch_first=True)  # (N, L, D)
    lengths = torch.tensor([len(s) for s in states], device=tokens.device)
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # (N, L)
    return Text(tokens, mask, torch.stack([pooled for _, pooled in found]))


def unit(pooled: Tensor) -> Tensor:
    """Pooled vectors (N, D') of length sqrt(D'): every entry is about 1, whatever the tower's
    scale."""
    return F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5


def blend(a: Text, b: Text, share: Tensor) -> Text:
    """N texts on the straight line from caption a to caption b (one each), `share` (N,) of the way.

    Tokens of the longer caption have no partner in the shorter one. Fading them in from zero would
    be a jump: a key of zeros still takes its part of a softmax, however small the share. So each
    caption's tokens are repeated to the least common length, which an attention cannot tell from
    the caption itself, and then every token has a partner at the same place of the other caption.
    """
    one, other = (text.tokens[text.mask] for text in (a, b))  # (L, D) each, without padding
    length = math.lcm(len(one), len(other))
    tokens = torch.lerp(_stretched(one, length), _stretched(other, length), share[:, None, None])
    return Text(
        tokens,  # (N, least common multiple of both L, D)
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
        torch.lerp(a.pooled, b.pooled, share[:, None]),  # (N, D')
    )


def _stretched(tokens: Tensor, length: int) -> Tensor:
    return tokens.repeat_interleave(length // len(tokens), dim=0)[None]  # (1, length, D)

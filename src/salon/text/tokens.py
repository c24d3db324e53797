"""Captions as rows of a table: open_clip's tokenizer, and a compact vocabulary over its tokens.

N captions, L tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from salon.text.base import TextTower

log = logging.getLogger(__name__)

MOST_WARNINGS = 50
NO_TOKEN = 2**31  # larger than any token id, so that the table stays sorted


class TokenTower(TextTower):
    """A tower that reads tokens by their rows in a table."""

    def __init__(
        self,
        *,
        context: int,  # tokens that it reads, with the two ends where it has them
        ends: bool,  # whether each caption is set between a start and an end token
        vocabulary: int | None,  # rows of a compact table; None = open_clip's own ids
        remember: int,
    ) -> None:
        super().__init__(remember=remember)
        self.vocabulary: Tensor | None
        self.context, self.ends = context, ends
        self.tokenizer = SimpleTokenizer()
        self._warned: set[str] = set()
        if vocabulary is not None:
            # Sorted open_clip ids in use; row i of the table is id vocabulary[i]. The two special
            # tokens are there from the start; free rows hold an id that nothing has.
            known = torch.full((vocabulary,), NO_TOKEN)
            known[:2] = torch.tensor([self.tokenizer.sot_token_id, self.tokenizer.eot_token_id])
            self.register_buffer("vocabulary", known)
        else:
            self.vocabulary = None

    @property
    def untaught(self) -> bool:
        """Whether there is a table to fill, and nothing in it but the two ends."""
        return self.vocabulary is not None and bool((self.vocabulary[2:] == NO_TOKEN).all())

    def learn_vocabulary(self, captions: Iterator[str]) -> None:
        """Keep the most frequent tokens of these captions, as many as the table has rows for."""
        if self.vocabulary is None:
            return
        counts: Counter[int] = Counter()
        for caption in captions:
            counts.update(self.tokenizer.encode(caption))
        special = [self.tokenizer.sot_token_id, self.tokenizer.eot_token_id]
        # The last row is for all tokens that are not in the table.
        common = sorted(counts, key=lambda token: (-counts[token], token))
        kept = sorted(common[: len(self.vocabulary) - len(special) - 1] + special)
        self.vocabulary.fill_(NO_TOKEN)
        self.vocabulary[: len(kept)] = torch.tensor(kept)

    def token_ids(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L) bool, L the longest caption's length; never an empty row.

        A caption that is too long is cut, with a warning that says where.
        """
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        room = self.context - 2 if self.ends else self.context
        rows = []
        for caption in captions:
            ids = self.tokenizer.encode(caption)
            if len(ids) > room:
                kept = ids[:room]
                self._warn(
                    f"prompt of {len(ids)} tokens is longer than the {room} that the "
                    f"text tower reads; it is cut after {self.tokenizer.decode(kept).strip()!r}"
                )
                ids = kept
            rows.append([start, *ids, end] if self.ends else ids or [end])
        length = max(map(len, rows))
        mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        if self.vocabulary is not None:
            ids = self._compact(ids, mask, self.vocabulary.cpu())
        device = next(self.parameters()).device
        return ids.to(device), mask.to(device)

    def _compact(self, ids: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        """Token ids to rows of the table; `known` (rows) holds each row's id, sorted."""
        rows = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        unknown = (known[rows] != ids) & mask
        for token in sorted(set(ids[unknown].tolist())):
            word = self.tokenizer.decode([token]).strip()
            self._warn(f"the text tower was trained without the word {word!r} and cannot read it")
        return torch.where(unknown | ~mask, len(known) - 1, rows)

    def _warn(self, message: str) -> None:
        """Once for each message, and not without end: web captions hold ever new words."""
        if message not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(message)
            log.warning(message)
            if len(self._warned) == MOST_WARNINGS:
                log.warning("further words and long prompts are not named")

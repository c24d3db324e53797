"""The text encoder of AttnGAN: a bidirectional LSTM, trained as one side of the DAMSM.

Xu et al. 2018, section 3.2; LSTM: Hochreiter & Schmidhuber 1997; bidirectional: Schuster & Paliwal
1997. A word's feature is its two hidden states, the caption's the last states of both directions.

Two differences to the authors' code: the words are open_clip's tokens over a compact table, the
most frequent of the training captions, and not the words of a fixed list; and a caption that is too
long is cut, not thinned at random, so that a caption always means the same.

N captions, T words, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from salon.text.tokens import TokenTower
from salon.types import Text

SPREAD = 0.1  # embeddings start uniform in [-0.1, 0.1], as the authors' code has it


class BiLSTM(TokenTower):
    def __init__(
        self,
        *,
        vocabulary: int,  # rows of the table
        embedding: int,  # features of a word before the LSTM
        width: int,  # D, both directions together
        dropout: float,  # of the embeddings
        context: int,  # words that are read
        remember: int,
    ) -> None:
        super().__init__(context=context, ends=False, vocabulary=vocabulary, remember=remember)
        if width % 2:
            raise ValueError(f"text.width={width}: two directions share it; expected an even width")
        self.width = self.pooled_width = width
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, width // 2, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -SPREAD, SPREAD)

    def encode(self, captions: Sequence[str]) -> Text:
        ids, mask = self.token_ids(captions)
        embedded = self.dropout(self.embedding(ids))  # (N, T, embedding)
        # Packed, so that the backward direction starts at each caption's own last word.
        packed = pack_padded_sequence(
            embedded, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, (last, _) = self.lstm(packed)  # last (2, N, D / 2)
        tokens, _ = pad_packed_sequence(states, batch_first=True)  # (N, T, D), zero on padding
        return Text(tokens, mask, torch.cat([last[0], last[1]], dim=1))

"""The DAMSM: which image belongs to which caption, by words and regions. A stage of AttnGAN.

Xu et al. 2018, "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative
Adversarial Networks", section 3.2. The text side is a frozen tower with a linear layer on top, or a
tower of its own, such as the paper's bidirectional LSTM, that is trained here and can be the text
tower of any family afterwards (text=bilstm).

    captions ── text tower ──> words (N, T, D), sentence (N, D) ┐
                                                                ├> scores of all N x N pairs
    images ── image encoder ─> regions (N, R, D), whole (N, D)  ┘

    loss = cross-entropy of word scores + cross-entropy of sentence scores, both ways each

N images, T words, R regions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salon.losses.damsm import damsm, sentence_scores, twins
from salon.models.base import MakeOptimizer, Schedule, Trainee
from salon.nn.matching import Matcher
from salon.text.base import TextTower
from salon.text.tokens import TokenTower
from salon.types import Batch, Text

OTHERS = 99  # wrong captions that the right one stands among, in R-precision


class Damsm(Trainee):
    def __init__(
        self,
        *,
        text: TextTower,
        train_text: bool,  # False: the tower stays as it is
        matcher: Callable[..., Matcher],  # given width, pooled_width
        vocabulary_captions: int,  # of the training split, that a trained tower's words come from
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.text, self.train_text = text, train_text
        if not train_text:
            self.keep_frozen(text)
        self.matcher = matcher(width=text.width, pooled_width=text.pooled_width)
        self.keep_frozen(*self.matcher.image.pretrained)
        self.vocabulary_captions = vocabulary_captions
        self._seen: list[tuple[Tensor, Tensor, list[str]]] = []

    def on_fit_start(self) -> None:
        if self.train_text and isinstance(self.text, TokenTower) and self.text.untaught:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.text.learn_vocabulary(data.captions("train", self.vocabulary_captions))

    def read(self, captions: list[str]) -> Text:
        """Captions in the joint space: tokens (N, T, D), pooled (N, D)."""
        # A tower in training must not remember what it said some batches ago.
        text = self.text.encode(captions) if self.train_text else self.text(captions)
        return self.matcher.read(text)

    def _step(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, Tensor]:
        text, seen = self.read(batch.captions), self.matcher.look(batch.images)
        same = twins(batch.captions, self.device)
        loss = damsm(text, seen.regions, seen.whole, same, gammas=self.matcher.gammas)
        told = {"loss": loss.total, "words": loss.words, "sentence": loss.sentence}
        for name, value in told.items():
            size = len(batch.images)
            self.log(f"{split}/{name}", value, batch_size=size, sync_dist=split == "val")
        return loss.total, seen.whole, text.pooled

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _, whole, sentences = self._step(batch, "val")
        self._seen.append((whole, sentences, batch.captions))

    def on_validation_epoch_end(self) -> None:
        """R-precision over all of this rank's validation images, always with the same others."""
        wholes, sentences, captions = zip(*self._seen, strict=True)
        self._seen.clear()
        told = [caption for group in captions for caption in group]
        found = r_precision(torch.cat(wholes), torch.cat(sentences), told, _choice())
        self.log("val/r_precision", found.precision, sync_dist=True)
        self.log("val/r_precision_chance", found.chance, sync_dist=True)

    @torch.no_grad()
    def precision(self, images: Tensor, captions: list[str]) -> Retrieved:
        """R-precision of images (N, 3, H, W) and their captions."""
        pieces = images.to(self.device).split(64)
        whole = torch.cat([self.matcher.look(piece).whole for piece in pieces])
        return r_precision(whole, self.read(captions).pooled, captions, _choice())


def _choice() -> torch.Generator:
    """Of the others, always the same."""
    return torch.Generator().manual_seed(0)


class Retrieved(NamedTuple):
    precision: Tensor  # (), share of images whose own caption wins
    chance: Tensor  # (), of a guess


def r_precision(
    whole: Tensor, sentences: Tensor, captions: list[str], generator: torch.Generator
) -> Retrieved:
    """How often an image's own caption has the highest cosine among 99 others.

    R-precision with R = 1 of Xu et al. 2018, section 4, over whole (N, D) and sentences (N, D). The
    others are drawn from the captions that differ from its own; where there are fewer than 99, all
    of them are taken, and chance says so. A tie is no hit.
    """
    scores = sentence_scores(sentences, whole)  # (N, N)
    right = scores.diagonal()
    wrong = ~(twins(captions, scores.device).fill_diagonal_(True))
    # The 99 highest of random numbers are a random choice without repetition.
    order = torch.rand(scores.shape, generator=generator).to(scores.device)
    order = order.masked_fill(~wrong, -1)
    drawn = order.topk(min(OTHERS, len(captions) - 1), dim=1)  # (N, 99)
    others = scores.gather(1, drawn.indices).masked_fill(drawn.values < 0, -torch.inf)
    hits = (right[:, None] > others).all(1).float()
    chance = 1 / (1 + (drawn.values >= 0).sum(1).float())
    return Retrieved(hits.mean(), chance.mean())

"""CLIP, trained contrastively on the run's own shards: the text tower that all families share.

Radford et al. 2021, figure 3. Captions that stand twice in a batch are both right for both images
(their rows would otherwise be pushed apart), so the targets are spread over equal captions.

    images   (N, 3, H, W) -> image tower -> (N, E) ┐
                                                   ├> cosine x scale -> cross-entropy, both ways
    captions (N)          -> text tower  -> (N, E) ┘

N images, E width of the joint space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.models.base import MakeOptimizer, Schedule, Trainee
from salon.text.clip import ClipTower
from salon.types import Batch

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class Clip(Trainee):
    def __init__(
        self,
        *,
        tower: ClipTower,
        vocabulary_captions: int,  # captions of the training split that the vocabulary is read from
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.tower, self.vocabulary_captions = tower, vocabulary_captions
        self._seen: list[tuple[Tensor, Tensor, list[str]]] = []

    def on_fit_start(self) -> None:
        if self.tower.untaught:  # a resumed run has its vocabulary from the checkpoint
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.tower.learn_vocabulary(data.captions("train", self.vocabulary_captions))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit vectors of images and captions, (N, E) each."""
        images = F.normalize(self.tower.encode_images(batch.images), dim=-1)
        captions = F.normalize(self.tower.encode(batch.captions).pooled, dim=-1)
        return images, captions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._limit()  # also where a run goes on: a batch's callbacks save before its end here
        images, captions = self.embed(batch)
        logits = self.tower.logit_scale * images @ captions.T  # (N, N)
        loss = contrastive(logits, batch.captions)
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._limit()

    @torch.no_grad()
    def _limit(self) -> None:
        self.tower.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._seen.append((*self.embed(batch), batch.captions))

    def on_validation_epoch_end(self) -> None:
        """R@1 among all of this rank's validation images, whose captions may repeat."""
        images, captions = (torch.cat(part) for part in list(zip(*self._seen, strict=True))[:2])
        told = [caption for *_, group in self._seen for caption in group]
        self._seen.clear()
        right = equal(told).to(images.device)
        similarity = images @ captions.T  # (N, N)
        for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            first = right.gather(1, scores.argmax(1, keepdim=True)).float().mean()
            self.log(f"val/{name}_r@1", first, sync_dist=True)


def equal(captions: list[str]) -> Tensor:
    """Which captions are the same, (N, N) bool."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions])
    return ids[:, None] == ids[None, :]


def contrastive(logits: Tensor, captions: list[str]) -> Tensor:
    """Symmetric cross-entropy with the target spread over equal captions."""
    right = equal(captions).to(logits)
    target = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

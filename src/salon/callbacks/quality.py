"""The jury's numbers at every validation, on the validation split's prompts."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from salon.jury.protocol import Exhibits, MakeDistance, clip_of, exhibits, verdict
from salon.models.base import TextToImage, sample_in_batches


class Quality(Callback):
    """Does nothing for a model that is no `TextToImage` (a stage)."""

    def __init__(self, *, images: int, batch_size: int, distance: MakeDistance) -> None:
        if images < 2:
            raise ValueError(
                f"callbacks.quality.images={images}; expected at least 2. To measure nothing: "
                "callbacks.quality=null"
            )
        self.images, self.batch_size, self.distance = images, batch_size, distance
        self._shown: Exhibits | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TextToImage):
            return
        if self._shown is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._shown = exhibits(data, "val", self.images)
        images = self._draw(trainer, pl_module, self._shown)
        told = verdict(images, self._shown, clip_of(pl_module), self.distance)
        named = {f"quality/{name}": value for name, value in told.items()}
        for name, value in named.items():
            trainer.callback_metrics[name] = torch.tensor(value)
        for logger in trainer.loggers:
            logger.log_metrics({**named, "quality/images": len(images)})

    def _draw(self, trainer: Trainer, model: TextToImage, shown: Exhibits) -> Tensor:
        """Each rank draws every ranks-th prompt; all ranks then see all images."""
        rank, ranks = trainer.global_rank, trainer.world_size
        captions = [prompt.caption for prompt in shown.prompts]
        share = -(-len(captions) // ranks)
        mine = [(rank + i * ranks) % len(captions) for i in range(share)]  # equal on every rank
        drawn = torch.cat(
            list(
                sample_in_batches(
                    model, [captions[i] for i in mine], mine, batch_size=self.batch_size
                )
            )
        )
        if ranks == 1:
            return drawn
        gathered = model.all_gather(drawn.to(model.device))  # (ranks, share, 3, H, W)
        assert isinstance(gathered, Tensor)
        return rearrange(gathered, "ranks share ... -> (share ranks) ...")[: len(captions)].cpu()

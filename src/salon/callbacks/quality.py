"""The jury's numbers at every validation, on the validation split's prompts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from salon.jury.protocol import Exhibits, MakeDistance, clip_of, draw, exhibits, verdict
from salon.models.base import TextToImage


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
        captions = [prompt.caption for prompt in self._shown.prompts]
        images = draw(pl_module, captions, batch_size=self.batch_size)
        told = verdict(images, self._shown, clip_of(pl_module), self.distance)
        named = {f"quality/{name}": value for name, value in told.items()}
        for name, value in named.items():
            trainer.callback_metrics[name] = torch.tensor(value)
        for logger in trainer.loggers:
            logger.log_metrics({**named, "quality/images": len(images)})

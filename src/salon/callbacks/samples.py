"""The same prompts and seeds at every validation, as pictures one can leaf through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon import pictures
from salon.callbacks.wandb_run import log_pictures
from salon.models.base import TextToImage


class Samples(Callback):
    """Does nothing for a model that is no `TextToImage` (a stage)."""

    def __init__(
        self,
        *,
        folder: Path,
        prompts: list[str] | None,  # None takes the validation split's first ones
        number: int,  # of the validation split's prompts
        seeds: list[int],  # each prompt is drawn once with each
    ) -> None:
        if number < 1 or not seeds:
            raise ValueError(
                f"callbacks.samples.number={number}, callbacks.samples.seeds={seeds}; expected at "
                "least one of each. To draw nothing: callbacks.samples=null"
            )
        self.folder, self.prompts, self.number, self.seeds = folder, prompts, number, seeds

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TextToImage):
            return
        if self.prompts is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self.prompts = [prompt.caption for prompt in data.prompts("val", self.number)]
        captions = [caption for caption in self.prompts for _ in self.seeds]
        seeds = self.seeds * (len(captions) // len(self.seeds))
        images = pl_module.sample(captions, seeds)  # by all ranks, where each has a part of it
        if not trainer.is_global_zero:
            return
        seen = pl_module.images_seen
        sheet = pictures.grid(images, captions, columns=2 * len(self.seeds))
        pictures.save_png(sheet, self.folder / f"images-{seen:010d}.png", {"generated": "yes"})
        log_pictures(trainer, "samples", images, captions, seeds, seen)

"""`checkpoints/last.ckpt`, every so many batches; written aside and renamed, so it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon.models.base import Trainee


class SaveLast(Callback):
    """Counts batches, since Lightning's own counts every optimiser's steps."""

    def __init__(self, *, path: Path, every: int) -> None:
        if every < 1:
            raise ValueError(f"budget.checkpoint_every={every}; expected at least 1 batch")
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Trainee)
        seen = pl_module.batches_seen
        if seen % self.every == 0 or seen == pl_module.budget or trainer.should_stop:
            self.save(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Trainee)
        # Lightning takes the last batch of one budget for the last of any: a finished run that is
        # resumed with a larger budget would train nothing, and not say so.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = progress["total"]["processed"] >= pl_module.budget

    def save(self, trainer: Trainer) -> None:
        aside = self.path.with_suffix(".partial")
        trainer.save_checkpoint(aside, weights_only=False)  # all ranks take part; rank 0 writes
        if trainer.is_global_zero:
            os.replace(aside, self.path)

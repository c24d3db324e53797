"""A progress bar on a terminal, and a line now and then where there is none."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar

from salon.models.base import NEVER, Trainee

EVERY = 30.0  # seconds between lines, where there is no terminal


class Lines(Callback):
    """For logs: how far the run is, every half minute, and each validation's numbers."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._said >= EVERY and trainer.is_global_zero:
            self._said = time.monotonic()
            metrics = trainer.callback_metrics
            losses = {
                name: metrics[f"train/{name}"] for name in LOSSES if f"train/{name}" in metrics
            }
            told = "".join(f", {name} {float(loss):.4f}" for name, loss in losses.items())
            print(f"batch {batch_idx + 1}{_of(pl_module)}{told}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {**trainer.callback_metrics, **trainer.logged_metrics}
            shown = [n for n in metrics if n.startswith("val/") or n in HEADLINES]
            print("  ".join(f"{name} {float(metrics[name]):.4f}" for name in shown), flush=True)


class Bar(RichProgressBar):
    """Whose end moves where it is seconds or operations that end a run."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert isinstance(pl_module, Trainee)
        task = self.train_progress_bar_id
        if self.progress is not None and task is not None and self.train_progress_bar:
            end = math.inf if pl_module.budget == NEVER else pl_module.budget
            if self.train_progress_bar.total != end:
                self.progress.update(task, total=end)


def _of(module: LightningModule) -> str:
    assert isinstance(module, Trainee)
    if module.budget == NEVER:
        return ""
    return f" of {'about ' if module.expected is not None else ''}{module.budget}"


LOSSES = ("loss", "d_loss", "g_loss")
HEADLINES = ("quality/prompt_accuracy", "quality/fid", "quality/fd_clip", "quality/clip_score")


def Progress() -> Callback:
    """Rich's bar on a terminal, lines in a log."""
    return Bar(refresh_rate=10) if sys.stdout.isatty() else Lines()

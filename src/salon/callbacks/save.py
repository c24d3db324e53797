"""`checkpoints/last.ckpt`, every so many batches, and `best.ckpt`, where one is asked for.

Written aside and renamed, so that each is whole or not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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
        _save(trainer, self.path)


class SaveBest(Callback):
    """The checkpoint of the best validation so far. It stands behind what measures and averages."""

    def __init__(
        self,
        *,
        path: Path,
        metric: str | None,  # of metrics.csv; None: the first of PREFERRED that is measured
        direction: str | None,  # maximize or minimize; None: as is usual for the metric
        objective: str | None,  # what the run returns: it stands in for metric=None
    ) -> None:
        if direction not in (None, "maximize", "minimize"):
            raise ValueError(
                f"callbacks.best.direction={direction!r}; expected maximize, minimize or null"
            )
        self.path, self.metric, self.direction = path, metric or objective, direction
        self.value: float | None = None
        self.images_seen = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        told = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.metric = self.metric or _preferred(told)
        if self.metric not in told:
            raise ValueError(
                f"callbacks.best.metric={self.metric!r} was not measured; this run measures "
                f"{', '.join(sorted(told))}"
            )
        value = told[self.metric]
        up = (self.direction or usual_direction(self.metric)) == "maximize"
        better = self.value is None or (value > self.value if up else value < self.value)
        if trainer.strategy.broadcast(better):  # each rank has its own rounding
            self.value, self.images_seen = value, pl_module.images_seen
            _save(trainer, self.path)

    def report(self, trainer: Trainer, module: Trainee) -> dict[str, float]:
        if self.value is None:
            return {}
        return {f"best/{self.metric}": self.value, "best/images_seen": self.images_seen}

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "images_seen": self.images_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.metric in (None, state_dict["metric"]):
            self.metric, self.value = state_dict["metric"], state_dict["value"]
            self.images_seen = state_dict["images_seen"]


PREFERRED = ("quality/prompt_accuracy", "quality/fd", "val/")  # names, or how they begin


def _preferred(measured: Iterable[str]) -> str | None:
    found = [name for start in PREFERRED for name in sorted(measured) if name.startswith(start)]
    return found[0] if found else None


def usual_direction(metric: str) -> str:
    """Distances, losses and costs are better small; scores and shares large."""
    last = metric.rpartition("/")[2]
    small = last.startswith(("fd", "kid", "malformed", "copies")) or "loss" in last
    return "minimize" if small or metric.startswith("cost/") else "maximize"


def _save(trainer: Trainer, path: Path) -> None:
    aside = path.with_suffix(".partial")
    trainer.save_checkpoint(aside, weights_only=False)  # all ranks take part; rank 0 writes
    if trainer.is_global_zero:
        os.replace(aside, path)

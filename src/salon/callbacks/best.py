"""`checkpoints/best.ckpt`: of the best validation so far, where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon.models.base import Trainee


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
            # Whole, since SaveLast has put its own way of writing in place.
            trainer.save_checkpoint(self.path, weights_only=False)

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

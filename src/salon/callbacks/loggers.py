"""`metrics.csv`, on the one clock: every row says how many images the run has seen.

Lightning's x-axis is its `global_step`, which runs faster the more optimisers a family has.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from salon import files
from salon.models.base import Trainee

Clock = Callable[[], dict[str, int]]


class MetricsCsv(Logger):
    """`metrics.csv`: a row for each batch that something was logged after; empty where nothing was.

    A resumed run keeps the rows up to its checkpoint and goes on below them (`Rewind`).
    """

    clock: Clock | None = None

    def __init__(self, *, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def rewind(self, batches: int) -> None:
        """Forget rows of batches that will be trained again."""
        self.rows = [row for row in self.rows if int(row["batches"]) <= batches]

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """The config lies beside it, as config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now = self.clock() if self.clock else {"batches": step or 0}
        if self.rows and int(self.rows[-1]["batches"]) == now["batches"]:
            self.rows[-1].update(metrics)
        else:
            self.rows.append({**now, **metrics})

    @rank_zero_only
    def save(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with files.aside(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class Rewind(Callback):
    """Takes `metrics.csv` back to where training starts: the checkpoint's batch, or the first."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.rewind(pl_module.batches_seen)

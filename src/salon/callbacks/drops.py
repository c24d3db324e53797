"""What the data stream left out, and why: logged as it happens, and written down at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer

from salon import files

REPORT = "data_report.json"


class Tally(Protocol):
    def metrics(self) -> dict[str, float]: ...
    def report(self) -> dict[str, Any]: ...


class Drops(Callback):
    """Logs `data/...` of a data module that keeps a tally, and writes REPORT into the run folder.

    Each rank counts its own; rank 0's are what is logged and written.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        if (tally := _tally(trainer)) is None:
            return
        metrics = tally.metrics()
        if any(metrics.values()):  # where nothing is ever dropped, there is nothing to look at
            pl_module.log_dict(metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        tally = _tally(trainer)
        if tally is None or not trainer.is_global_zero:
            return
        report = json.dumps(tally.report(), indent=2, ensure_ascii=False)
        files.write(self.folder / REPORT, report)


def _tally(trainer: Trainer) -> Tally | None:
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "tally"):
        return None
    data.settle()
    tally: Tally = data.tally
    return tally

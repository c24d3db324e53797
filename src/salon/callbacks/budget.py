"""Ends a run where its seconds or operations are used up, and tells schedules how far it is.

Batches and images are limits that the Trainer itself knows, as a number of batches. What ends a run
is the first of all of them.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon.callbacks.cost import Cost
from salon.models.base import Trainee


class Budget(Callback):
    """Stands behind `cost`, which counts."""

    def __init__(self, cost: Cost, *, seconds: float | None, flops: float | None) -> None:
        self.cost, self.seconds, self.flops = cost, seconds, flops

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)  # a resumed run is not at its beginning

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Trainee)
        seconds, flops = self.cost.spent(module)
        limits = ((seconds, self.seconds), (flops, self.flops))
        shares = [spent / limit for spent, limit in limits if limit is not None]
        # Every rank has to stop at the same batch, and each has its own clock.
        used = float(trainer.strategy.broadcast(max(shares)))
        if used > 0:
            module.expected = max(module.batches_seen, round(module.batches_seen / used))
        if used >= 1:
            trainer.should_stop = True

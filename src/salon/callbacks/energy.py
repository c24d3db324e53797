"""The energy of training, and its CO2e; nothing where nothing meters it.

It is of training alone, with the waiting for data, and without validation, sampling and metrics.
It goes on being counted when a run is resumed; where a part of a run was not metered, there is no
number for the run. Of several ranks each meters its own device, and this one's stands for all.
"""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon.metrics.energy import KWH, Counter, check, counter, grid_of, used
from salon.models.base import Trainee

log = logging.getLogger(__name__)


class Energy(Callback):
    def __init__(
        self,
        *,
        meter: str,  # auto (a GPU's counter, where there is one), nvml, codecarbon or none
        intensity: float | None,  # g CO2e per kWh
        grid: str | None,  # whose; with the source and year of that number
    ) -> None:
        check(meter)
        self.meter, self.grid = meter, grid_of(intensity, grid)
        self.joules: float | None = None  # of training up to the last reading, on this rank
        self.names: list[str] = []  # of the meters that have counted
        self._counter: Counter | None = None
        self._before: float | None = None  # the last reading
        self._training = False

    # -- when it counts ------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        self._counter = counter(pl_module.device, self.meter)
        if pl_module.batches_seen == 0:
            self.joules = 0.0
        if self._counter is None:
            self.joules = None
        elif self.joules is None:
            log.warning("energy is not measured: what was trained before was not metered")
        else:
            self.names = list(dict.fromkeys([*self.names, self._counter.name]))
        self._training = self._counter is not None
        self._read(counts=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()
        self._training = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = self._counter is not None
        self._read(counts=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _read(self, *, counts: bool = True) -> None:
        if self._counter is None or not self._training:
            return
        now = self._counter.read()
        if counts:
            more = used(self._before, now)
            self.joules = None if self.joules is None or more is None else self.joules + more
        self._before = now

    def _close(self) -> None:
        self._read()
        self._training = False
        if self._counter is not None:
            self._counter.close()
            self._counter = None

    # -- what it tells -------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        told = self.report(trainer, pl_module)
        for logger in trainer.loggers if told else ():
            logger.log_metrics(told)

    def report(self, trainer: Trainer, module: Trainee) -> dict[str, float]:
        joules = self._of_all(trainer)
        if joules is None:
            return {}
        told = {"cost/energy_wh": joules / KWH * 1000}
        if self.grid is not None:
            told["cost/co2e_g"] = self.grid.grams(joules)
        return told

    def remarks(self, trainer: Trainer) -> dict[str, Any]:
        """What summary.json says of it besides."""
        if self._of_all(trainer) is None:
            return {}
        named = {} if self.grid is None else {
            "grid": self.grid.name, "grid_g_per_kwh": self.grid.intensity,
        }  # fmt: skip
        return {"energy": {"meter": " and ".join(self.names), **named}}

    def _of_all(self, trainer: Trainer) -> float | None:
        return None if self.joules is None else self.joules * trainer.world_size

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"joules": self.joules, "names": self.names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.joules, self.names = state_dict["joules"], list(state_dict["names"])

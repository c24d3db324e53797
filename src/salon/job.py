"""What Hydra knows of a job, for the group, name and tags that a logger shows.

`${salon.job:}` of conf/logger/wandb.yaml (salon.config), where no Hydra is running too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

NOTHING: dict[str, Any] = {"sweep": None, "choices": {}, "overrides": []}


def job() -> dict[str, Any]:
    """The sweep's name (None: one run alone), the option of each group, the command's overrides."""
    if not HydraConfig.initialized():
        return NOTHING
    told = HydraConfig.get()
    choices = {str(key): value for key, value in told.runtime.choices.items()}
    return {
        "sweep": Path(told.sweep.dir).name if told.mode == RunMode.MULTIRUN else None,
        "choices": {key: value for key, value in choices.items() if "hydra/" not in key},
        "overrides": list(told.overrides.task),
    }


def of_stage(told: Mapping[str, Any], model: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The same for a stage of the run that `told` is of."""
    run_only = ("experiment", "benchmark")  # they say what the run is, and not how it is trained
    choices = {key: value for key, value in told["choices"].items() if key not in run_only}
    return {
        "sweep": told["sweep"],
        "choices": {**choices, "model": model},
        "overrides": list(overrides),
    }

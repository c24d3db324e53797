"""Meters of energy with the real ones' names, for machines that have none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from salon.metrics import energy


class NVMLError(Exception):
    pass


def board(monkeypatch: pytest.MonkeyPatch, *, step: int = 0) -> Any:
    """`pynvml` with a counter of millijoules in `.millijoules`, which each reading raises by
    `step`; `.error`, where set, is raised by a reading."""
    fake: Any = SimpleNamespace(millijoules=0, error=None, asked=[])

    def read(handle: str) -> int:
        if fake.error is not None:
            raise fake.error
        fake.asked.append(handle)
        fake.millijoules += step
        return fake.millijoules

    module = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(energy, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-1")
    )
    return fake


def carbon(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`codecarbon`, whose every task takes `.kwh`; None: it has failed, and says nothing."""
    fake: Any = SimpleNamespace(kwh=0.001, running=0, made=[])

    class OfflineEmissionsTracker:
        def __init__(self, **options: Any) -> None:
            fake.made.append(options)

        def start_task(self, task_name: str | None = None) -> None:
            assert fake.running == 0, "A task is already under measure"
            fake.running += 1

        def stop_task(self, task_name: str | None = None) -> Any:
            fake.running -= 1
            return None if fake.kwh is None else SimpleNamespace(energy_consumed=fake.kwh)

        def stop(self) -> float:
            fake.running = 0
            return 0.0

    module = SimpleNamespace(OfflineEmissionsTracker=OfflineEmissionsTracker)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setattr(energy, "find_spec", lambda name: True)
    return fake

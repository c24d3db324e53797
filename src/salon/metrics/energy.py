"""Energy that a GPU's own counter has metered; where nothing meters it, there is no number.

NVIDIA's driver counts millijoules of the whole board since it was loaded (Volta and later), so the
difference of two readings is exact, and includes whatever else ran there. A CPU has no counter that
everyone may read; an estimate is not a measurement, and is not given.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from types import TracebackType

import torch

log = logging.getLogger(__name__)


class Meter:
    """`with Meter(device) as meter: ...` leaves `meter.joules`, or None."""

    def __init__(self, device: torch.device) -> None:
        self.joules: float | None = None
        self._read = counter(device)
        self._before: float | None = None

    def __enter__(self) -> Meter:
        if self._read is not None:
            self._before = self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._read is not None and self._before is not None:
            self.joules = self._read() - self._before


def counter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads joules, or None where there is no such counter.

    Needs `pip install nvidia-ml-py`.
    """
    if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        # By its identity: CUDA_VISIBLE_DEVICES renumbers what torch sees.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        log.warning("energy is not measured: %s", error)
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000

"""Energy that a meter has counted; where nothing meters it, there is no number.

    nvml        the GPU's own counter: NVIDIA's driver counts millijoules of the whole board since
                it was loaded (Volta and later), so the difference of two readings is exact, and
                includes whatever else ran there
    codecarbon  its estimate of this process: where it may not read a processor's counter, the
                processor's rated power by its load, and a constant for memory

A CPU has no counter that everyone may read. An estimate is not a measurement: it is made only where
it is asked for, and goes by its name. Both need `pip install 'salon[energy]'`.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from importlib.util import find_spec
from types import TracebackType
from typing import Any, NamedTuple

import torch

log = logging.getLogger(__name__)

METERS = ("auto", "nvml", "codecarbon", "none")
INSTALL = "pip install 'salon[energy]'"
KWH = 3.6e6  # joules


class Counter(ABC):
    """Joules since whenever; a difference of two readings is what was used between them."""

    name: str

    @abstractmethod
    def read(self) -> float | None:
        """None where reading failed."""

    def close(self) -> None:  # noqa: B027  (a board's counter goes on without us)
        """After the last reading."""


class Board(Counter):
    """A GPU's own counter, of all that runs there."""

    name = "nvml"

    def __init__(self, device: torch.device) -> None:
        """Raises pynvml.NVMLError where the device has no such counter."""
        import pynvml

        self._nvml: Any = pynvml
        self._device = device
        pynvml.nvmlInit()
        # By its identity: CUDA_VISIBLE_DEVICES renumbers what torch sees.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def read(self) -> float | None:
        torch.cuda.synchronize(self._device)  # what was asked for is done
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError as error:
            log.warning("the GPU's energy counter cannot be read any more: %s", error)
            return None


class Estimate(Counter):
    """codecarbon's, offline; its own figures of carbon are not used."""

    name = "codecarbon"

    def __init__(self) -> None:
        import codecarbon

        self._joules = 0.0
        # It measures at the ends of tasks, so a reading ends one and begins the next.
        self._tracker: Any = codecarbon.OfflineEmissionsTracker(
            save_to_file=False, save_to_api=False, allow_multiple_runs=True,
            tracking_mode="process", log_level="error",
        )  # fmt: skip
        self._tracker.start_task()

    def read(self) -> float | None:
        told = self._tracker.stop_task()
        if told is None:  # it reports its own failures in this way
            log.warning("codecarbon has measured nothing")
            return None
        self._tracker.start_task()
        self._joules += told.energy_consumed * KWH
        return self._joules

    def close(self) -> None:
        self._tracker.stop()


def check(meter: str) -> None:
    """Raises ValueError for a name that is no meter's, and for a package that is missing."""
    if meter not in METERS:
        raise ValueError(f"energy.meter={meter!r}; expected one of {', '.join(METERS)}")
    if meter == "codecarbon" and find_spec("codecarbon") is None:
        raise ValueError(
            f"energy.meter=codecarbon: it is not installed. To install it: {INSTALL}; to do "
            "without: energy.meter=auto"
        )


def counter(device: torch.device, meter: str = "auto") -> Counter | None:
    """What counts the energy of work on a device, or None where nothing does.

    Raises ValueError for a meter that is asked for by its name and is not there.
    """
    check(meter)
    if meter == "none":
        return None
    if meter == "codecarbon":
        return Estimate()
    why = ""
    if device.type != "cuda":
        why = f"{device.type} has no counter; for an estimate say energy.meter=codecarbon"
    elif find_spec("pynvml") is None:
        why = f"pynvml is not installed. To install it: {INSTALL}"
    else:
        import pynvml

        try:
            return Board(device)
        except pynvml.NVMLError as error:
            why = f"the driver says: {error}"
            if meter == "auto":
                log.warning("energy is not measured: %s", error)
    if meter == "nvml":
        raise ValueError(f"energy.meter=nvml: {why}; or do without: energy.meter=auto")
    return None


class Meter:
    """`with Meter(device) as meter: ...` leaves `meter.joules`, or None."""

    def __init__(self, device: torch.device, meter: str = "auto") -> None:
        self.joules: float | None = None
        self._counter = counter(device, meter)
        self._before: float | None = None

    @property
    def name(self) -> str | None:
        """Whose number it is."""
        return None if self._counter is None else self._counter.name

    def __enter__(self) -> Meter:
        if self._counter is not None:
            self._before = self._counter.read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._counter is not None:
            self.joules = used(self._before, self._counter.read())
            self._counter.close()


def used(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None where one is missing or the counter has begun anew."""
    if before is None or after is None or after < before:
        return None
    return after - before


class Grid(NamedTuple):
    """Whose electricity it was."""

    name: str  # and source and year, e.g. "Germany 2024, Umweltbundesamt"
    intensity: float  # g CO2e per kWh

    def grams(self, joules: float) -> float:
        return joules / KWH * self.intensity


def grid_of(intensity: float | None, name: str | None) -> Grid | None:
    """Raises ValueError where one is given without the other, and for what is no intensity."""
    if intensity is None and name is None:
        return None
    if intensity is None or not name:
        raise ValueError(
            f"energy.intensity={intensity}, energy.grid={name!r}: grams of CO2e need both, the g "
            "per kWh and the grid, source and year that they are of, such as energy.intensity=363 "
            "'energy.grid=Germany 2024'; or leave out both"
        )
    if isinstance(intensity, bool) or not isinstance(intensity, int | float):
        raise ValueError(f"energy.intensity={intensity!r}; expected g CO2e per kWh, a number")
    if not (math.isfinite(intensity) and intensity >= 0):
        raise ValueError(f"energy.intensity={intensity}; expected g CO2e per kWh, 0 or more")
    return Grid(str(name), float(intensity))

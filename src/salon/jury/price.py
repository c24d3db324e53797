"""What a picture costs to draw: seconds, operations, parameters, memory, and metered energy.

Latency is of whole calls of `sample`, from captions to pictures, after calls that are not timed;
on a GPU the clock waits for it. The text tower's memory is emptied before each call, since a user's
prompt is new.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from salon.metrics.energy import Grid, Meter
from salon.metrics.flops import FlopCount
from salon.models.base import TextToImage


class Price(NamedTuple):
    latency: float  # seconds of one picture alone, median
    latency_p95: float
    batch: int  # pictures in the largest batch that was tried
    seconds_per_image: float  # in such a batch, median
    flops: float  # of one picture
    parameters: int  # of what is run
    peak_memory_mb: float | None  # of the GPU in the largest batch; None on a CPU
    joules_per_image: float | None  # in the largest batch; None where nothing meters it
    meter: str | None  # what metered it
    grid: Grid | None  # that the energy is taken to come from; None where that is not known
    device: str
    threads: int  # of the CPU


@torch.no_grad()
def price(
    model: TextToImage,
    captions: Sequence[str],
    *,
    batch: int,
    repeats: int,  # calls that are timed, of each size
    meter: str = "auto",  # a name in salon.metrics.energy
    grid: Grid | None = None,
) -> Price:
    """Raises ValueError where there are fewer captions than the largest batch holds, and for a
    meter that is not there."""
    if len(captions) < batch or batch < 1:
        raise ValueError(
            f"price: {len(captions)} captions for a batch of {batch}; give more of them"
        )
    device = model.device
    alone = timed(model, captions[:1], repeats)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with Meter(device, meter) as energy:
        together = timed(model, captions[:batch], repeats)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    model.text.forget()
    with FlopCount() as count:
        model.sample(captions[:1], [0])
    drawn = batch * (WARM + repeats)
    return Price(
        latency=statistics.median(alone),
        latency_p95=percentile(alone, 0.95),
        batch=batch,
        seconds_per_image=statistics.median(together) / batch,
        flops=float(count.total),
        parameters=drawn_with(model, captions[0]),
        peak_memory_mb=peak,
        joules_per_image=None if energy.joules is None else energy.joules / drawn,
        meter=None if energy.joules is None else energy.name,
        grid=grid,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
    )


WARM = 2  # calls that are not timed


def timed(model: TextToImage, captions: Sequence[str], repeats: int) -> list[float]:
    """Seconds of each call."""
    found = []
    for call in range(WARM + repeats):
        model.text.forget()
        begin = time.perf_counter()
        model.sample(captions, list(range(len(captions))))
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        if call >= WARM:
            found.append(time.perf_counter() - begin)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def drawn_with(model: TextToImage, caption: str) -> int:
    """Parameters of the modules that drawing a picture runs; a discriminator is not among them."""
    used: dict[int, int] = {}

    def note(module: torch.nn.Module, *_: object) -> None:
        used.update({id(p): p.numel() for p in module.parameters(recurse=False)})

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        model.text.forget()
        model.sample([caption], [0])
    finally:
        for hook in hooks:
            hook.remove()
    return sum(used.values())

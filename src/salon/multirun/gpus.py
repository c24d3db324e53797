"""Jobs at a time on one machine spread over its GPUs, as hydra/launcher=processes leaves to them.

A worker keeps its GPU for as long as it lives, since CUDA looks at CUDA_VISIBLE_DEVICES once; locks
in the machine's folder for temporary files tell workers of each other, those of other commands too.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from salon import parallel

_kept: list[FileLock] = []  # of this worker; at most one


def take_one(launcher: Any, trainer: DictConfig) -> None:
    """The GPU that fewest others have becomes the only one that this process sees.

    Does nothing where another launcher shares them out, where there are not several, or where a job
    wants none or several.
    """
    wanted = trainer.devices == 1 and parallel.wants_gpus(trainer)
    if _kept or not wanted or not launcher._target_.endswith(".JoblibLauncher"):
        return
    names = visible()
    if len(names) < 2:
        return
    folder = Path(tempfile.gettempdir()) / f"salon-gpus-{os.getuid()}"
    for taken, name in ((n, name) for n in itertools.count() for name in names):
        lock = FileLock(folder / f"{name.replace('/', '-')}.{taken}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _kept.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return


def visible() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]

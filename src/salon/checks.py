"""What is refused before anything is trained, with the key that is wrong and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from salon import parallel
from salon.config import unknown
from salon.models.base import Trainee

LIMITS = ("batches", "images", "seconds", "flops")  # of a budget; the first ends the run
BUDGET = (*LIMITS, "validate_every", "checkpoint_every")
TOP_LEVEL = {
    "seed", "resume", "stages_dir", "job_type", "batch_size", "budget", "gate", "objective",
    "direction", "trial", "data", "text", "trainer", "callbacks", "logger", "metrics", "model",
    "experiment",
}  # fmt: skip


def check(cfg: DictConfig) -> None:
    """Catch typos in files, which Hydra takes for new keys; it catches the command line's."""
    for key in cfg:
        if key not in TOP_LEVEL:
            raise ValueError(unknown(str(key), sorted(TOP_LEVEL)))
    for key in ("validate_every", "checkpoint_every"):
        value = cfg.budget[key]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"budget.{key}={value}; expected a number of batches, at least 1")
    limits = {key: cfg.budget.get(key) for key in LIMITS}
    for key, value in limits.items():
        whole = key in ("batches", "images")
        kind = int if whole else (int, float)
        if value is not None and (not isinstance(value, kind) or value <= 0):
            raise ValueError(
                f"budget.{key}={value}; expected null or a {'whole ' * whole}number above 0"
            )
    if set(limits.values()) == {None}:
        raise ValueError(
            f"budget: nothing ends this run; set one of {', '.join(f'budget.{k}' for k in LIMITS)}"
        )
    parallel.check(cfg.trainer)
    for key in cfg.budget:
        if key not in BUDGET:
            raise ValueError(unknown(f"budget.{key}", [f"budget.{name}" for name in BUDGET]))
    check_direction(cfg)


def check_direction(cfg: DictConfig) -> None:
    """Of each objective, where a search (`trial`) asks for it."""
    names, ways = listed(cfg.objective), listed(cfg.direction)
    if any(way not in ("maximize", "minimize") for way in ways):
        raise ValueError(f"direction={cfg.direction}; expected maximize or minimize, or a list")
    if (ways or cfg.trial is not None) and len(names) != len(ways):
        raise ValueError(
            f"direction={cfg.direction} for objective={cfg.objective}; expected one for each: "
            "maximize or minimize, and with several objectives a list"
        )


def listed(value: Any) -> list[str]:
    """One name, several, or none."""
    return [value] if isinstance(value, str) else list(value or [])


def writable(folder: Path) -> None:
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"the run folder {str(folder)!r} cannot be written ({error}). Name another: "
            "hydra.run.dir=FOLDER"
        ) from error


def check_shapes(data: Any, model: Trainee) -> None:
    """Raises ValueError where the model cannot train on what data.buckets makes."""
    if data.buckets and model.stride is None:
        raise ValueError(
            f"data.buckets.step is set, and {type(model).__name__} trains on squares only; "
            "of the families, latent_diffusion and its autoencoder take other shapes. Say "
            "data.buckets.step=null"
        )
    for size in data.buckets:
        if any(side % model.stride for side in size):
            raise ValueError(
                f"data.buckets.step: this model's pictures need sides that divide by "
                f"{model.stride}, and one bucket is {size[0]}x{size[1]}. Set data.buckets.step to "
                f"a multiple of {model.stride}"
            )

"""Loggers on one clock: every row says how many images the run has seen.

Lightning's x-axis is its `global_step`, which runs faster the more optimisers a family has.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from salon import pictures

Clock = Callable[[], dict[str, int]]
# Where wandb keeps what it has not uploaded yet: with the run, so that a folder can be moved whole.
HOMES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")


class WandbOnClock(WandbLogger):
    """`images_seen` is the x-axis of everything."""

    clock: Clock | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        del step  # of Lightning's clock; a step also fixes rows, and wandb drops what comes late
        self.experiment.log({**metrics, **(self.clock() if self.clock else {})})

    def close(self, *, failed: bool) -> None:
        """Always to be called: jobs of one multirun share a process, and would share a run."""
        self.experiment.finish(exit_code=1 if failed else 0)
        for name in HOMES:
            if os.environ.get(name, "").startswith(str(self.save_dir)):
                del os.environ[name]


def wandb_logger(
    *,
    folder: Path,
    project: str,
    entity: str | None,
    group: str | None,
    name: str | None,
    tags: Sequence[str],
    job_type: str,
    mode: str,  # auto (online where the user is logged in), online, offline or disabled
    config: dict[str, Any],
) -> WandbOnClock:
    """A new W&B run in the folder; offline needs no account."""
    modes = ("auto", "online", "offline", "disabled")
    if mode not in modes:
        raise ValueError(f"logger.mode={mode!r}; expected one of {', '.join(modes)}")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    for home in HOMES:
        os.environ.setdefault(home, str(folder / "wandb" / home.split("_")[1].lower()))
    run = wandb.init(
        project=project, entity=entity, group=group, name=name, tags=list(tags), config=config,
        job_type=job_type, dir=str(folder), mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip
    run.define_metric("images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen")
    return WandbOnClock(experiment=run, save_dir=str(folder))


def logged_in() -> bool:
    """Whether wandb has a key: in its environment variable, or where `wandb login` leaves it."""
    return bool(os.environ.get("WANDB_API_KEY") or wandb.setup().settings.api_key or _netrc())


def _netrc() -> bool:
    try:
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text()
    except OSError:
        return False


class MetricsCsv(Logger):
    """`metrics.csv`: a row for each moment that something was logged; empty where nothing was.

    A resumed run keeps the rows up to its checkpoint and goes on below them.
    """

    clock: Clock | None = None

    def __init__(self, *, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def rewind(self, batches: int) -> None:
        """Forget rows of batches that will be trained again."""
        self.rows = [row for row in self.rows if int(row["batches"]) <= batches]

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """The config lies beside it, as config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now = self.clock() if self.clock else {"batches": step or 0}
        if self.rows and int(self.rows[-1]["batches"]) == now["batches"]:
            self.rows[-1].update(metrics)
        else:
            self.rows.append({**now, **metrics})

    @rank_zero_only
    def save(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        aside = self.path.with_suffix(".partial")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(aside, self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def log_pictures(
    trainer: Trainer,
    key: str,
    images: Tensor,
    captions: Sequence[str],
    seeds: Sequence[int],
    images_seen: int,
) -> None:
    """To W&B: as media with a slider over time, and as a table to search by prompt."""
    drawn = pictures.to_pil(images)
    for logger in trainer.loggers:
        if not isinstance(logger, WandbOnClock):
            continue
        media = [
            wandb.Image(picture, caption=f"{caption} (seed {seed})")
            for picture, caption, seed in zip(drawn, captions, seeds, strict=True)
        ]
        table = wandb.Table(columns=["images_seen", "prompt", "seed", "image"])
        for picture, caption, seed in zip(drawn, captions, seeds, strict=True):
            table.add_data(images_seen, caption, seed, wandb.Image(picture))
        logger.log_metrics({f"media/{key}": media, f"tables/{key}": table})

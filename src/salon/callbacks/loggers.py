"""Loggers on one clock: every row says how many images the run has seen.

Lightning's x-axis is its `global_step`, which runs faster the more optimisers a family has.
"""

from __future__ import annotations

import csv
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from salon import files, pictures
from salon.models.base import Trainee

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
        try:
            self.experiment.finish(exit_code=1 if failed else 0)
        finally:
            _leave(Path(str(self.save_dir)))


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
    check_mode(mode)
    # Before anything of wandb is asked: its service reads them when it starts.
    for home in HOMES:
        os.environ.setdefault(home, str(folder / "wandb" / home.split("_")[1].lower()))
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    try:
        run = wandb.init(
            project=project, entity=entity, group=group, name=name, tags=list(tags), config=config,
            job_type=job_type, dir=str(folder), mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
    except BaseException:
        _leave(folder)
        raise
    run.define_metric("images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen")
    return WandbOnClock(experiment=run, save_dir=str(folder))


def check_mode(mode: str) -> None:
    modes = ("auto", "online", "offline", "disabled")
    if mode not in modes:
        raise ValueError(f"logger.mode={mode!r}; expected one of {', '.join(modes)}")


def _leave(folder: Path) -> None:
    """The next run of this process keeps its files in its own folder."""
    for name in HOMES:
        if folder in Path(os.environ.get(name, "")).parents:
            del os.environ[name]


def logged_in() -> bool:
    """Whether wandb has a key: in its environment variable, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    settings = wandb.setup().settings
    return bool(settings.api_key) or _netrc(str(urlparse(settings.base_url).hostname))


def _netrc(host: str) -> bool:
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(file).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None


class MetricsCsv(Logger):
    """`metrics.csv`: a row for each batch that something was logged after; empty where nothing was.

    A resumed run keeps the rows up to its checkpoint and goes on below them (`Rewind`).
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
        with files.aside(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class Rewind(Callback):
    """Takes `metrics.csv` back to where training starts: the checkpoint's batch, or the first."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.rewind(pl_module.batches_seen)


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

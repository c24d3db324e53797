"""The smallest text-to-image model and data set, for what must hold whatever the family.

N images, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from salon.callbacks import cost
from salon.models.base import TextToImage
from salon.text.base import TextTower
from salon.text.clip import ClipTower, custom
from salon.types import Batch, Prompt, Text

SIDE, BATCH = 8, 4
CAPTIONS = ["a red circle", "a blue square", "a green triangle", "a small red square"]
SCENES: list[dict[str, Any]] = [
    {
        "background": None,
        "relation": None,
        "objects": [{"shape": shape, "color": color, "size": size, "position": None}],
    }
    for shape, color, size in (
        ("circle", "red", None),
        ("square", "blue", None),
        ("triangle", "green", None),
        ("square", "red", "small"),
    )
]


def clip(*, image_size: int = 8, seed: int = 0) -> ClipTower:
    """An untrained CLIP that knows the words of `CAPTIONS`."""
    torch.manual_seed(seed)
    tower = custom(
        embed_dim=6, image_size=image_size,
        vision={"patch_size": 4, "layers": 1, "width": 8, "head_width": 4},
        text={"layers": 1, "width": 8, "heads": 2}, context=12, vocabulary=32,
        embedding_std=0.02, remember=100,
    )  # fmt: skip
    tower.learn_vocabulary(iter(CAPTIONS))
    return tower.eval().requires_grad_(False)


class NoText(TextTower):
    width = pooled_width = 1

    def encode(self, captions: Sequence[str]) -> Text:
        count = len(captions)
        return Text(
            torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool), torch.zeros(count, 1)
        )


class Toy(TextToImage):
    """Paints noise through one linear layer; `judge` is trained, and not used to sample."""

    def __init__(self, *, text: TextTower | None = None, fail_at: str = "") -> None:
        super().__init__(optimizer=partial(torch.optim.SGD, lr=0.1), schedule=lambda *_: 1.0)
        torch.manual_seed(0)
        self.painter = nn.Sequential(nn.Linear(3 * SIDE**2, 3 * SIDE**2), nn.BatchNorm1d(192))
        self.judge = nn.Linear(3 * SIDE**2, 1)
        self.text = text or NoText(remember=10)
        self.keep_frozen(self.text)
        self.resolution, self.fail_at = SIDE, fail_at
        self.recipe = {"version": 1, "model": {"_target_": "toy.Toy"}, "run": {}}

    @property
    def averaged(self) -> nn.Module:
        return self.painter

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        flat = batch.images.flatten(1)  # (N, P)
        return (self.painter(flat) - flat).square().mean() + self.judge(flat).square().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.fail_at == "validation":
            raise RuntimeError("the toy was told to fail")
        self.log("val/loss", batch.images.mean(), batch_size=len(batch.images))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (3 * SIDE**2,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        return self.painter(z).view(-1, 3, SIDE, SIDE)  # (N, P) to images


class _Stream(IterableDataset[Batch]):
    def __init__(self, first: int, count: int | None) -> None:
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[Batch]:
        number = self.first
        while self.count is None or number < self.first + self.count:
            yield batch(number)
            number += 1


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator) * 2 - 1
    return Batch(images, list(CAPTIONS), [f"{number}-{i}" for i in range(BATCH)])


class ToyData(LightningDataModule):
    """An endless stream, which goes on where a checkpoint left it."""

    def __init__(self, *, scenes: bool = True) -> None:
        super().__init__()
        self.batch_size, self.scenes, self._start = BATCH, scenes, 0

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(_Stream(self._start, None), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(_Stream(1000, 2), batch_size=None)

    def prompts(self, split: str, limit: int) -> list[Prompt]:
        return [
            Prompt(CAPTIONS[i], SCENES[i] if self.scenes else None, f"{2000 + n}-{i}")
            for n in range(-(-limit // BATCH))
            for i in range(BATCH)
        ][:limit]

    def has(self, split: str) -> bool:
        return True

    def batches(self, split: str, number: int) -> Iterator[Batch]:
        return (batch(2000 + i) for i in range(number))

    def state_dict(self) -> dict[str, Any]:
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total  # type: ignore[union-attr]
        return {"batches": total.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["batches"]


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))

    def having(self, key: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if key in row]


def trainer(
    callbacks: Sequence[Callback],
    *,
    batches: int,
    validate_every: int,
    loggers: Iterable[Logger] = (),
    **options: Any,
) -> Trainer:
    """As `salon.run` makes it."""
    return pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=list(loggers),
        max_epochs=1, max_steps=-1, limit_train_batches=batches,
        val_check_interval=validate_every, check_val_every_n_epoch=1, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
        **({"devices": 1, "enable_progress_bar": False} | options),
    )  # fmt: skip


def fit(
    model: Toy,
    callbacks: Sequence[Callback] = (),
    *,
    batches: int = 4,
    validate_every: int = 2,
    loggers: Iterable[Logger] = (),
    data: ToyData | None = None,
    resume: Path | None = None,
    **options: Any,
) -> Trainer:
    made = trainer(
        callbacks, batches=batches, validate_every=validate_every, loggers=loggers, **options
    )
    made.fit(model, datamodule=data or ToyData(), ckpt_path=resume, weights_only=True)
    return made


class Watch:
    """A clock that only the model moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def model(self) -> Toy:
        watch = self

        class Timed(Toy):
            def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
                watch.now += 2
                return super().training_step(batch, batch_idx)

            def validation_step(self, batch: Batch, batch_idx: int) -> None:
                watch.now += 100

        return Timed()

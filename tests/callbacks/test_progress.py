"""Lines where there is no terminal, and metrics.csv."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from torch import Tensor

import salon.run
import toy
from salon.callbacks import progress
from salon.callbacks.cost import Cost
from salon.callbacks.loggers import MetricsCsv, Rewind
from salon.callbacks.save import SaveLast
from salon.models.base import NEVER
from salon.types import Batch


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def run(folder: Path, *, batches: int, model: toy.Toy | None = None, **options: Any) -> None:
    """A run as `salon.run` would put it together."""
    model, logger = model or toy.Toy(), MetricsCsv(folder=folder)
    logger.clock = lambda: {"images_seen": model.images_seen, "batches": model.batches_seen}
    save = SaveLast(path=folder / "last.ckpt", every=4)
    toy.fit(model, [Rewind(), Cost(), save], batches=batches, loggers=[logger], **options)


def test_one_row_for_each_batch_that_something_was_logged_after(tmp_path: Path) -> None:
    run(tmp_path, batches=6)
    found = rows(tmp_path / "metrics.csv")
    assert [(row["images_seen"], row["batches"]) for row in found] == [
        ("8", "2"), ("16", "4"), ("24", "6"),
    ]  # fmt: skip
    # The callbacks' numbers and Lightning's own, on one row.
    assert all(row["cost/seconds"] and row["val/loss"] for row in found)


def test_the_header_grows_and_gaps_stay_empty(tmp_path: Path) -> None:
    now = {"images_seen": 0, "batches": 0}
    logger = MetricsCsv(folder=tmp_path)
    logger.clock = lambda: dict(now)
    logger.log_metrics({"a": 1.5})
    logger.save()
    now["batches"] = 1
    logger.log_metrics({"b": 2.5})
    logger.save()
    first, second = rows(tmp_path / "metrics.csv")
    assert first == {"images_seen": "0", "batches": "0", "a": "1.5", "b": ""}
    assert second == {"images_seen": "0", "batches": "1", "a": "", "b": "2.5"}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]  # nothing half-written


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path: Path) -> None:
    """It is killed at 7, and goes on from a checkpoint of 4."""

    class Killed(toy.Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            if batch_idx == 4:
                shutil.copy(tmp_path / "last.ckpt", tmp_path / "four.ckpt")
            if batch_idx == 7:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, model=Killed(), batches=8)
    before = rows(tmp_path / "metrics.csv")
    assert [row["batches"] for row in before] == ["2", "4", "6"]
    run(tmp_path, batches=8, validate_every=4, resume=tmp_path / "four.ckpt")
    after = rows(tmp_path / "metrics.csv")
    assert [row["batches"] for row in after] == ["2", "4", "8"]
    assert after[0] == before[0]


def test_a_new_run_in_an_old_folder_starts_a_new_file(tmp_path: Path) -> None:
    run(tmp_path, batches=6)
    run(tmp_path, batches=2)
    assert [row["batches"] for row in rows(tmp_path / "metrics.csv")] == ["2"]


def test_training_takes_the_file_back(mini: Callable[..., DictConfig], tmp_path: Path) -> None:
    for batches in (4, 2):
        salon.run.train(mini("cvae/tiny", f"budget.batches={batches}"), tmp_path)
    assert [row["batches"] for row in rows(tmp_path / "metrics.csv")] == ["2"]


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: False)
    toy.fit(toy.Toy(), [progress.Progress()], batches=3, validate_every=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("batch")] == [
        "batch 1 of 3", "batch 2 of 3", "batch 3 of 3",
    ]  # fmt: skip
    assert sum(line.startswith("val/loss ") for line in lines) == 1


class Half(Callback):
    """Learns after the second batch that seconds will end the run in the fourth."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.batches_seen == 2:
            pl_module.expected = 4
        trainer.should_stop = pl_module.batches_seen == 4


def test_how_far_it_is_where_no_batch_is_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: False)
    toy.fit(toy.Toy(), [Half(), progress.Progress()], batches=NEVER, validate_every=NEVER)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("batch")] == [
        "batch 1", "batch 2 of about 4", "batch 3 of about 4", "batch 4 of about 4",
    ]  # fmt: skip


def test_the_end_of_a_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    ends = []

    class Seen(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            ends.append(bar.train_progress_bar.total)

    bar = progress.Progress()
    assert isinstance(bar, progress.Bar)
    toy.fit(
        toy.Toy(), [Half(), bar, Seen()], batches=NEVER, validate_every=NEVER,
        enable_progress_bar=True,
    )  # fmt: skip
    assert ends == [float("inf"), 4, 4, 4]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    assert isinstance(progress.Progress(), RichProgressBar)

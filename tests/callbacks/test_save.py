"""`last.ckpt`: when it is written, and that a crash leaves a whole one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import Tensor

import toy
from salon import checkpoint
from salon.callbacks.guard import Diverged
from salon.callbacks.save import NotSaved, SaveLast
from salon.types import Batch


class TwoSteps(toy.Toy):
    """Like a GAN: two optimisers, two steps in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        parts = (self.painter, self.judge)
        return [self.make_optimizer(part.parameters()) for part in parts], []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            optimizer.step()
        return loss


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches after which a checkpoint was written."""
    batches: list[int] = []
    real = Trainer.save_checkpoint

    def save(self: Trainer, *arguments: Any, **options: Any) -> None:
        batches.append(self.lightning_module.batches_seen)  # type: ignore[arg-type]
        real(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    return batches


@pytest.mark.parametrize("make", [toy.Toy, TwoSteps])
def test_every_so_many_batches_and_at_the_end(
    make: type[toy.Toy], written: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    toy.fit(make(), [SaveLast(path=path, every=3)], batches=7, validate_every=5)
    assert written == [3, 5, 6, 7]  # before the validation too, in which much can go wrong
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.read(path)["salon"]["model"] == {"_target_": "toy.Toy"}


def test_a_resumed_run_trains_what_is_left(written: list[int], tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    toy.fit(toy.Toy(), [SaveLast(path=path, every=4)], batches=4, validate_every=4)
    for budget in (9, 9, 6):  # more, no more, and less than it has
        toy.fit(
            toy.Toy(), [SaveLast(path=path, every=4)],
            batches=budget, validate_every=budget, resume=path,
        )  # fmt: skip
        assert written == [4, 8, 9]


def processed(path: Path) -> int:
    progress = checkpoint.read(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["total"]["processed"])


def test_a_crash_while_writing_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:  # the second file; the folder is flushed too
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    says = r"last\.ckpt could not be written.*No space left.*needs 0\.\d MB.*go on with resume="
    with pytest.raises(NotSaved, match=says):
        toy.fit(toy.Toy(), [SaveLast(path=path, every=2)], batches=6)
    assert processed(path) == 2
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Spoilt(toy.Toy):
        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            if self.batches_seen == 3:
                self.judge.bias.data[0] = float("nan")

    path = tmp_path / "last.ckpt"
    with pytest.raises(Diverged, match=r"after batch 4 the weights of .* are not finite"):
        toy.fit(Spoilt(), [SaveLast(path=path, every=2)], batches=6)
    assert processed(path) == 2


def test_gradients_that_wait_are_not_lost(written: list[int], tmp_path: Path) -> None:
    """Saved between two halves of a batch, a run would go on with half of its gradient."""
    path = tmp_path / "last.ckpt"
    save = SaveLast(path=path, every=2)
    toy.fit(toy.Toy(), [save], batches=9, validate_every=9, accumulate_grad_batches=3)
    assert written == [3, 6, 9]


def test_never_is_not_a_choice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"budget.checkpoint_every=0.*at least 1"):
        SaveLast(path=tmp_path / "last.ckpt", every=0)

"""`last.ckpt`: when it is written, and that a crash leaves a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import Tensor

import toy
from salon import checkpoint
from salon.callbacks.save import SaveLast
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
    toy.fit(make(), [SaveLast(path=path, every=3)], batches=7)
    assert written == [3, 6, 7]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.read(path)["salon"]["model"] == {"_target_": "toy.Toy"}


def test_a_resumed_run_trains_what_is_left(written: list[int], tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    toy.fit(toy.Toy(), [SaveLast(path=path, every=4)], batches=4)
    for budget in (9, 9, 6):  # more, no more, and less than it has
        toy.fit(toy.Toy(), [SaveLast(path=path, every=4)], batches=budget, resume=path)
        assert written == [4, 8, 9]


def test_a_crash_while_writing_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    real = Trainer.save_checkpoint

    def save(self: Trainer, filepath: Path, weights_only: bool | None = None) -> None:
        real(self, filepath, weights_only)
        if self.lightning_module.batches_seen == 4:
            whole = Path(filepath).read_bytes()
            Path(filepath).write_bytes(whole[: len(whole) // 2])
            raise OSError("no space left on device")

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    with pytest.raises(OSError, match="no space left"):
        toy.fit(toy.Toy(), [SaveLast(path=path, every=2)], batches=6)
    loops = checkpoint.read(path)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"]["processed"] == 2


def test_never_is_not_a_choice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"budget.checkpoint_every=0.*at least 1"):
        SaveLast(path=tmp_path / "last.ckpt", every=0)

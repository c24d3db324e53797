"""Real processes: ranks with spawned workers are killed, and one rank with others goes on.

This file is also the program that they run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

import salon
import toy
from reading import READING
from salon.data.module import ShardData
from salon.types import Batch
from tars import encode, good, noise, write_shard

LAST = "last.ckpt"


class Told(toy.Toy):
    """Writes down what it is trained on, before it is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with (self.folder / f"rank{self.global_rank}.txt").open("a") as lines:
            print(*batch.keys, file=lines)
        return super().training_step(batch, batch_idx)


class SaveThenDie(Callback):
    """A checkpoint after every batch; the process is killed within the batch after `batches`."""

    def __init__(self, folder: Path, batches: int | None) -> None:
        self.folder, self.batches = folder, batches

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batches:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / LAST)


def train(folder: Path, *, ranks: int, workers: int, start: str, end: int, kill: bool) -> None:
    data = ShardData(
        train=str(folder / "shards"), val=str(folder / "shards"), test=None, heldout=None,
        **READING | {"start_method": start}, resolution=toy.SIDE, batch_size=4, val_samples=4,
        seed=0, lanes=4, window=7, workers=workers,
    )  # fmt: skip
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    resume = folder / LAST
    trainer = toy.trainer(
        [SaveThenDie(folder, end if kill else None)],
        batches=end + kill, validate_every=end + kill, limit_val_batches=0,
        **({"devices": ranks, "strategy": strategy} if ranks > 1 else {}),
    )  # fmt: skip
    found = resume if resume.exists() else None
    trainer.fit(Told(folder), datamodule=data, ckpt_path=found, weights_only=True)


def run(folder: Path, *settings: str) -> int:
    places = [Path(toy.__file__).parent, Path(salon.__file__).parents[1]]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places)),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *settings],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def keys(folder: Path, rank: int = 0) -> list[str]:
    return (folder / f"rank{rank}.txt").read_text().splitlines()


def shards_in(folder: Path) -> Path:
    (folder / "shards").mkdir(parents=True)
    for shard in range(5):
        samples = [(key, {**members, "png": PICTURE}) for key, members in map(good, range(11))]
        samples = [(f"{shard}{key}", members) for key, members in samples]
        samples.insert(4, (f"{shard}bad", {"png": b"", "txt": b"x"}))
        write_shard(folder / "shards" / f"{shard}.tar", samples)
    return folder


PICTURE = encode(noise(0, toy.SIDE, toy.SIDE))


def test_killed_ranks_with_spawned_workers_are_gone_on_with_by_others(tmp_path: Path) -> None:
    whole, legs = shards_in(tmp_path / "whole"), shards_in(tmp_path / "legs")
    assert run(whole, "1", "0", "fork", "12", "") == 0
    assert run(legs, "2", "2", "spawn", "3", "kill") == -signal.SIGKILL
    parts = [keys(legs, rank) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 3
    seen = [part[i] for i in range(3) for part in parts]
    assert not {*parts[0]} & {*parts[1]}
    for rank in range(2):
        (legs / f"rank{rank}.txt").unlink()
    assert run(legs, "1", "4", "fork", "9", "") == 0  # its batches go on counting at 3
    assert seen + keys(legs) == keys(whole)
    assert len(keys(whole)) == 12


if __name__ == "__main__":
    place, ranks, workers, how, last, die = sys.argv[1:]
    train(
        Path(place), ranks=int(ranks), workers=int(workers), start=how, end=int(last),
        kill=bool(die),
    )  # fmt: skip

"""Two processes that see half a batch each train as one that sees the whole.

This file is also the script that the ranks run: `python test_ddp.py FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

import salon
import toy
from salon.models.base import noise
from salon.models.df_gan import DFGAN, Discriminator, Generator, HingeMAGP, Play
from salon.nn.augment import DiffAugment
from salon.types import Batch

BATCHES = 2
# With an epsilon at which a gradient of next to nothing does not become a step of its rounding.
ADAM = partial(torch.optim.Adam, lr=0.01, betas=(0.0, 0.9), eps=1e-4)


class Keyed(DFGAN):
    """Its noise belongs to the samples, whichever rank has them."""

    def prepare(self, batch: Batch) -> Play:
        return self.play(batch, noise([int(key) for key in batch.keys], self.latent_shape, "cpu"))  # type: ignore[arg-type]


class Stream(IterableDataset[Batch]):
    def __init__(self, rank: int | None) -> None:
        self.rank = rank  # None: the whole batch

    def __iter__(self) -> Iterator[Batch]:
        for number in range(BATCHES):
            # Of equal captions, so that the next sample's is the same in a half and in the whole.
            halves = [toy.batch(2 * number), toy.batch(2 * number + 1)]
            mine = halves if self.rank is None else [halves[self.rank]]
            captions = [caption for half in mine for caption in half.captions]
            first = 2 * number * toy.BATCH + (self.rank or 0) * toy.BATCH
            keys = [str(first + i) for i in range(len(captions))]
            yield Batch(torch.cat([half.images for half in mine]), captions, keys)


class Data(LightningDataModule):
    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole, self.batch_size = whole, toy.BATCH * (2 if whole else 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        rank = None if self.whole else self.trainer.global_rank  # type: ignore[union-attr]
        return DataLoader(Stream(rank), batch_size=None)


def train(**options: Any) -> Keyed:
    torch.manual_seed(0)
    model = Keyed(
        text=toy.clip(), resolution=toy.SIDE,
        generator=partial(Generator, latent=3, channels=6, widest=12),
        discriminator=partial(
            Discriminator, channels=6, widest=12, head=8, gate=0.0, init="pytorch"
        ),
        objective=HingeMAGP(weight=2.0, power=6.0), penalty_every=1, pairs="roll",
        augment=DiffAugment(color=False, translation=0.0, cutout=0.0),
        truncation=None, temperature=1.0, schedule=lambda *_: 1.0,
        optimizer=ADAM, discriminator_optimizer=ADAM,
    )  # fmt: skip
    for parameter in model.parameters():
        # Layers that start at zero would hide what comes before them.
        parameter.data += 0.1 * torch.randn_like(parameter)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, max_steps=-1, limit_train_batches=BATCHES, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        use_distributed_sampler=False, **({"devices": 1} | options),
    )  # fmt: skip
    trainer.fit(model, datamodule=Data(whole=not options))
    return model


def rank(folder: Path) -> None:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    model = train(devices=2, strategy=strategy)
    told = {
        "weights": model.state_dict(),
        "seed": torch.initial_seed(),
        "images": model.images_seen,
        "batches": model.batches_seen,
    }
    torch.save(told, folder / f"{model.global_rank}.pt")


def test_two_ranks_train_as_one_process_at_twice_the_batch(tmp_path: Path) -> None:
    expected = train()
    places = [Path(toy.__file__).parent, Path(salon.__file__).parents[1]]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places)),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    assert first["seed"] != second["seed"], "each rank draws noise of its own"
    for told in (first, second):
        assert (told["batches"], told["images"]) == (BATCHES, BATCHES * 2 * toy.BATCH)
    for name, value in expected.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank(Path(sys.argv[1]))

"""Two processes that see half a batch each train as one that sees the whole.

This file is also the script that the ranks run: `python test_ddp.py FOLDER`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import salon
import toy
from salon import parallel, ranks
from salon.diffusion.schedule import RectifiedFlow
from salon.models.base import noise
from salon.models.df_gan import DFGAN, Discriminator, Generator, HingeMAGP, Play
from salon.models.latent_diffusion import LatentDiffusion
from salon.nn.augment import DiffAugment
from salon.nn.autoencoder import AutoencoderKL
from salon.nn.unet import UNet
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


class KeyedDiffusion(LatentDiffusion):
    """Its times and noise belong to the samples, whichever rank has them."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
        keys = torch.tensor([int(key) for key in batch.keys])
        eps, t = noise(keys.tolist(), self.shape, "cpu"), self.process.times((keys % 7 + 1) / 9)  # type: ignore[arg-type]
        noised = self.process.noised(self.encode(batch, drawn=False), eps, t)
        return self.loss(noised, t, self.read(batch)).mean()

    def on_fit_start(self) -> None:
        """The scale is set by hand."""


def gan() -> Keyed:
    return Keyed(
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


def diffusion() -> KeyedDiffusion:
    model = KeyedDiffusion(
        text=toy.clip(), resolution=toy.SIDE,
        autoencoder=AutoencoderKL(
            in_channels=3, latent_channels=4, channels=[32, 32], blocks=1, patch=1,
            mid_attention=False,
        ),
        unet=partial(
            UNet, channels=[32, 64], blocks=1, attention=[False, True], heads=None, head_dim=32,
            depth=1,
        ),
        pooled=True, process=RectifiedFlow(mean=0.0, std=1.0, shift=1.0), drop=0.0,
        scale_batches=1, sampler="euler", steps=2, guidance=1.0, interval=None,
        schedule=lambda *_: 1.0, optimizer=ADAM,
    )  # fmt: skip
    model.latent_mean.zero_()
    model.latent_std.fill_(1.0)
    return model


FAMILIES: dict[str, Callable[[], Keyed | KeyedDiffusion]] = {"gan": gan, "diffusion": diffusion}


def train(family: str, devices: int = 1) -> Keyed | KeyedDiffusion:
    asked = {"accelerator": "cpu", "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for parameter in model.parameters():
        # Layers that start at zero would hide what comes before them.
        parameter.data += 0.1 * torch.randn_like(parameter)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, max_steps=-1, limit_train_batches=BATCHES, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        use_distributed_sampler=False, devices=devices,
        strategy=parallel.strategy(asked, model, stage=False),
    )  # fmt: skip
    trainer.fit(model, datamodule=Data(whole=devices == 1))
    return model


def rank(folder: Path) -> None:
    with ranks.together():
        for family in FAMILIES:
            told_by(train(family, devices=2), folder / family)


def told_by(model: Keyed | KeyedDiffusion, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    told = {
        "weights": model.state_dict(),
        "seed": torch.initial_seed(),
        "images": model.images_seen,
        "batches": model.batches_seen,
    }
    torch.save(told, folder / f"{model.global_rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as environment:
        places = [Path(toy.__file__).parent, Path(salon.__file__).parents[1]]
        environment.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        environment.setenv("OMP_NUM_THREADS", "1")
        ranks.launch([sys.executable, __file__, str(folder)], 2, folder / "logs")
    return folder


@pytest.mark.parametrize("family", list(FAMILIES))
def test_two_ranks_train_as_one_process_at_twice_the_batch(two: Path, family: str) -> None:
    expected = train(family).state_dict()
    torch.manual_seed(0)
    begun = FAMILIES[family]().state_dict()
    first, second = (torch.load(two / family / f"{i}.pt", weights_only=True) for i in range(2))
    assert first["seed"] != second["seed"], "each rank draws noise of its own"
    for told in (first, second):
        assert (told["batches"], told["images"]) == (BATCHES, BATCHES * 2 * toy.BATCH)
    for name, value in expected.items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=1e-5)
    assert any(
        not torch.allclose(value, begun[name], atol=1e-3) for name, value in expected.items()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank(Path(sys.argv[1]))

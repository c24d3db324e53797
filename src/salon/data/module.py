"""The data modules that all families share: training stream, fixed splits, prompts."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from salon.data import shapes
from salon.data.shards import (
    BadSample,
    Encoded,
    FixedSplit,
    Reader,
    TrainStream,
    caption_of,
    count_up_to,
    encoded,
    expand,
)
from salon.types import Batch, Prompt

log = logging.getLogger(__name__)


class ShardData(LightningDataModule):
    """Any folder of LAION-style shards.

    `train` and `val` are needed; `test` and other splits are None where the data set has none.

    Raises ValueError where a split names no shard, is smaller than one batch for every rank, or
    has fewer shards than ranks x workers.
    """

    def __init__(
        self,
        *,
        train: str | Sequence[str],
        val: str | Sequence[str],
        test: str | Sequence[str] | None,
        heldout: str | Sequence[str] | None,
        resolution: int,
        batch_size: int,  # for each rank
        val_samples: int,  # at most; whole batches are taken
        seed: int,
        lanes: int,  # the sequence depends on it; ranks x workers must divide it
        window: int,
        workers: int,
        max_pixels: int,
    ) -> None:
        super().__init__()
        self.patterns = {"train": train, "val": val, "test": test, "heldout": heldout}
        self.reader = Reader(resolution, max_pixels)
        self.resolution, self.batch_size, self.val_samples = resolution, batch_size, val_samples
        self.seed, self.window, self.workers = seed, window, workers
        self.lanes = lanes
        self._start = 0

    def shards(self, split: str) -> list[str]:
        patterns = self.patterns.get(split)
        if patterns is None:
            known = [name for name, given in self.patterns.items() if given is not None]
            raise ValueError(f"this data set has no split {split!r}; it has {', '.join(known)}")
        return expand(f"data.{split}", patterns)

    @property
    def identity(self) -> str:
        """Ten hex digits for what a model trained on this data has seen: shards and resolution."""
        shards = self.shards("train")
        told = [[Path(s).name, Path(s).stat().st_size] for s in shards]
        digest = hashlib.sha256(json.dumps([told, self.resolution]).encode())
        with open(shards[0], "rb") as first:  # tars are padded, so equal sizes are common
            digest.update(first.read(1 << 20))
        return digest.hexdigest()[:10]

    def has(self, split: str) -> bool:
        return self.patterns.get(split) is not None

    # -- for the Trainer ---------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        ranks = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        shards = self.shards("train")
        lanes, stride = min(self.lanes, len(shards)), ranks * max(1, self.workers)
        if lanes % stride:
            raise ValueError(
                f"data.lanes={self.lanes} over {len(shards)} shards makes {lanes} lanes, which "
                f"{ranks} ranks x {max(1, self.workers)} workers do not divide. Set data.lanes to "
                f"a multiple of {stride}, at most the number of shards, or lower data.workers"
            )
        wanted = self.batch_size * ranks
        if (found := count_up_to(wanted, shards)) < wanted:
            raise ValueError(
                f"data.train has {found} samples, fewer than one batch of {self.batch_size} for "
                f"{ranks} ranks. Lower the batch size: batch_size=N"
            )
        stream = TrainStream(
            shards, self.reader, batch_size=self.batch_size, seed=self.seed, lanes=lanes,
            window=self.window, rank=rank, ranks=ranks, start=self._start * ranks,
        )  # fmt: skip
        return self._loader(stream, self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        ranks = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        shards = self.shards("val")
        wanted = self.batch_size * ranks
        found = count_up_to(self.val_samples, shards)
        steps = found // wanted
        if not steps:
            raise ValueError(
                f"data.val gives {found} samples (data.val_samples={self.val_samples} at most), "
                f"fewer than one batch of {self.batch_size} for {ranks} ranks. Lower the batch "
                "size: batch_size=N"
            )
        split = FixedSplit(
            shards, self.reader, batch_size=self.batch_size, batches=steps * ranks,
            rank=rank, ranks=ranks,
        )  # fmt: skip
        return self._loader(split, min(1, self.workers))

    def _loader(self, dataset: Any, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()
        )

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        return {"batches": total.processed, **self._told()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in self._told().items():
            if state_dict[key] != value:
                raise ValueError(
                    f"resume: the run was trained with {key}={state_dict[key]} and is now asked to "
                    f"go on with {value}; the stream could not continue where it stopped. Give the "
                    f"same {key}"
                )
        self._start = state_dict["batches"]

    def _told(self) -> dict[str, Any]:
        """What the sequence of a rank's batches depends on."""
        return {
            "batch_size": self.batch_size,
            "ranks": self.trainer.world_size if self.trainer else 1,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "identity": self.identity,
        }

    # -- for everybody else ------------------------------------------------------------------

    def batches(self, split: str, number: int) -> Iterator[Batch]:
        """The first batches of a split, the same on every rank; fewer where it has fewer."""
        shards = self.shards(split)
        number = count_up_to(number * self.batch_size, shards) // self.batch_size
        yield from FixedSplit(shards, self.reader, batch_size=self.batch_size, batches=number)

    def captions(self, split: str, limit: int) -> Iterator[str]:
        """The captions of a split, at most `limit`, without decoding a picture."""
        return itertools.islice((caption for caption, _ in self._captioned(split)), limit)

    def prompts(self, split: str, limit: int) -> list[Prompt]:
        """What to draw: each json's `prompt` where it stands (described exactly), or the txt."""
        samples = itertools.islice(self._captioned(split), limit)
        return [
            _exact(sample) or Prompt(caption, None, sample["__key__"])
            for caption, sample in samples
        ]

    def _captioned(self, split: str) -> Iterator[tuple[str, Encoded]]:
        for sample in itertools.chain.from_iterable(map(encoded, self.shards(split))):
            try:
                yield caption_of(sample), sample
            except BadSample as reason:
                log.warning("skipped a bad sample, %s", reason)


def _exact(sample: Encoded) -> Prompt | None:
    """The json's own prompt; most data sets have none, and some have no valid json."""
    try:
        told = json.loads(sample["json"])["prompt"]
        return Prompt(told["caption"], told["asked"], sample["__key__"])
    except (LookupError, TypeError, ValueError, RecursionError):
        return None


class ShapesData(ShardData):
    """The embedded data set; its shards are rendered on first use."""

    def __init__(
        self,
        *,
        root: str,
        world_seed: int,  # of the pictures; `seed` is the order in which they come
        samples: dict[str, int],  # split -> how many; the splits are shapes.SPLITS
        shard_size: int,
        phrasings: int,
        pairs: float,
        resolution: int,
        **stream: Any,  # the rest of ShardData's
    ) -> None:
        if set(samples) != set(shapes.SPLITS) or min(samples.values()) < 1:
            raise ValueError(
                f"data.samples={dict(samples)}: expected at least 1 for each of the splits "
                f"{', '.join(shapes.SPLITS)}"
            )
        if not 0 <= pairs <= 1:
            raise ValueError(
                f"data.pairs={pairs}: expected a share of the pictures, from 0 to 1, to show two "
                "objects"
            )
        settings = shapes.ShapesSettings(
            resolution, world_seed, dict(samples), shard_size, phrasings, float(pairs)
        )
        folder = Path(root) / f"shapes-{settings.identity}"
        splits: dict[str, Any] = {split: str(folder / split) for split in shapes.SPLITS}
        super().__init__(**splits, resolution=resolution, **stream)
        self.root, self.settings = Path(root), settings

    @property
    def identity(self) -> str:
        return self.settings.identity

    def prepare_data(self) -> None:
        shapes.prepare(self.root, self.settings)

    def shards(self, split: str) -> list[str]:
        self.prepare_data()
        return super().shards(split)

"""The data modules that all families share: training stream, fixed splits, prompts."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from salon.data import metadata, shapes
from salon.data.access import Access
from salon.data.buckets import Size
from salon.data.captions import CaptionRules
from salon.data.image import ImageRules
from salon.data.lane import Source
from salon.data.openers import expand, opened, size_of
from salon.data.position import Position
from salon.data.precomputed import LatentReader, Networks, find, place
from salon.data.reader import Candidate, Known, Reader, Reads, known, listed
from salon.data.reasons import FILTERED, Bad
from salon.data.stream import FixedSplit, TrainStream, in_order
from salon.data.tally import Drop, Patience, Tally
from salon.data.tar import Limits
from salon.types import Batch, Latents, Prompt

log = logging.getLogger(__name__)

Patterns = str | Sequence[str] | Mapping[str, Mapping[str, Any]]


class ShardData(LightningDataModule):
    """Any LAION-style shards.

    A split is a folder, a glob, a brace list, a URL, a list of those, or several sources to mix:
    {NAME: {shards: ..., weight: ...}, ...}. `train` and `val` are needed; `test` and other splits
    are None where the data set has none.

    Raises ValueError where a split names no shard, is smaller than one batch for every rank, or
    has fewer shards than ranks x workers.
    """

    def __init__(
        self,
        *,
        train: Patterns,
        val: Patterns,
        test: Patterns | None,
        heldout: Patterns | None,
        resolution: int,
        crop: str,  # "center" or "random"
        batch_size: int,  # for each rank
        val_samples: int,  # at most; whole batches are taken
        seed: int,
        lanes: int,  # the sequence depends on it; ranks x workers must divide it
        window: int,
        workers: int,
        image: ImageRules,
        caption: CaptionRules,
        buckets: Sequence[Size],  # (width, height) of training pictures; none: squares
        precomputed: bool | str,  # true, or a folder: what `salon.data precompute` made
        precomputed_dir: str,  # where its folders lie
        filters: Sequence[Mapping[str, Any]],  # as salon.data.metadata.make_rules takes them
        limits: Limits,
        access: Access,
        errors: Patience,
        start_method: str | None,  # of workers: "fork", "spawn", "forkserver"; None = the system's
    ) -> None:
        if crop not in ("center", "random"):
            raise ValueError(f"data.crop={crop!r}; expected 'center' or 'random'")
        super().__init__()
        self.patterns = {"train": train, "val": val, "test": test, "heldout": heldout}
        rules = metadata.make_rules(filters)
        self.reader = Reader(resolution, crop, image, caption, rules, limits, access)
        self.resolution, self.batch_size, self.val_samples = resolution, batch_size, val_samples
        self.seed, self.lanes, self.window = seed, lanes, window
        self.workers, self.start_method, self.patience = workers, start_method, errors
        self.buckets = [(int(wide), int(high)) for wide, high in buckets]
        self.precomputed, self.precomputed_dir = precomputed, precomputed_dir
        self._made: tuple[Path, LatentReader] | None = None  # in place of the pictures
        if precomputed:
            self.check_squares("data.precomputed")
        self.position = Position(errors)

    # -- which shards --------------------------------------------------------------------------

    def sources(self, split: str) -> list[Source]:
        given = self.patterns.get(split)
        if given is None:
            known = [name for name, patterns in self.patterns.items() if patterns is not None]
            raise ValueError(f"this data set has no split {split!r}; it has {', '.join(known)}")
        key, access = f"data.{split}", self.reader.access
        if not isinstance(given, Mapping):
            return [Source(split, expand(key, given, access), 1.0)]
        found = []
        for name, told in given.items():
            if set(told) != {"shards", "weight"} or not float(told["weight"]) > 0:
                raise ValueError(
                    f"{key}.{name}={dict(told)}: expected {{shards: FOLDER, weight: W}} with a "
                    "weight above 0; leave a source out that shall not be used"
                )
            shards = expand(f"{key}.{name}.shards", told["shards"], access)
            found.append(Source(str(name), shards, float(told["weight"])))
        return found

    def shards(self, split: str) -> list[str]:
        return [shard for source in self.sources(split) for shard in source.shards]

    @functools.cached_property  # it asks for every shard's size, and every checkpoint for it
    def identity(self) -> str:
        """Ten hex digits for what a model trained on this data has seen: shards and rules."""
        return self._digest("train")

    @functools.cached_property
    def read_identity(self) -> str:
        """The same for all that a Trainer reads, which is what `precompute` writes."""
        told = self.identity + self._digest("val")
        return hashlib.sha256(told.encode()).hexdigest()[:10]

    def _digest(self, split: str) -> str:
        access, sources = self.reader.access, self.sources(split)
        told = [
            [s.name, s.weight, [[Path(url).name, size_of(url, access)] for url in s.shards]]
            for s in sources
        ]
        digest = hashlib.sha256(json.dumps([told, self._rules()]).encode())
        with opened(sources[0].shards[0], access) as first:  # tars are padded, so equal sizes
            digest.update(first.read(1 << 20))  # are common
        return digest.hexdigest()[:10]

    def _rules(self) -> list[Any]:
        """What of the config decides what a sample becomes."""
        reader = self.reader
        # A long expression's own repr is cut off after 200 characters.
        filters = [
            rule._replace(wanted=getattr(rule.wanted, "pattern", rule.wanted))
            for rule in reader.filters
        ]
        rules = repr([reader.image, reader.caption, filters])
        return [reader.resolution, reader.crop, rules]

    def about(self) -> dict[str, list[Known]]:
        """The shards that a Trainer reads."""
        return {split: list(map(known, self.shards(split))) for split in ("train", "val")}

    def has(self, split: str) -> bool:
        return self.patterns.get(split) is not None

    # -- what was precomputed ------------------------------------------------------------------

    def check_squares(self, wanted: str) -> None:
        """Raises ValueError where a picture is not cut to one square, the same each time."""
        for key, bad in (
            ("data.crop=random", self.reader.crop == "random"),
            ("data.buckets.step", bool(self.buckets)),
        ):
            if bad:
                raise ValueError(
                    f"{wanted} keeps one square of each picture, and {key} asks for others. Say "
                    "data.crop=center data.buckets.step=null, or data.precomputed=false"
                )

    def made_by(self, networks: Networks) -> Path:
        """The folder of what these networks made of this data."""
        if isinstance(self.precomputed, str):
            return Path(self.precomputed)
        return place(Path(self.precomputed_dir), self.read_identity, networks)

    def use_precomputed(self, networks: Networks) -> None:
        """Feeds that in place of pictures and captions, for training and validation.

        Raises ValueError where it is not there, or of other networks or data.
        """
        folder, reader = self.made_by(networks), self.reader
        about = find(folder, self.read_identity, networks)
        self._made = (
            folder,
            LatentReader(about, reader.caption, reader.limits, reader.access, reader.draws),
        )

    def _fed(self, split: str) -> tuple[list[Source], Reads]:
        """What the Trainer reads of a split, and how."""
        sources = self.sources(split)
        if self._made is None:
            return sources, self.reader
        folder, latents = self._made
        made = []
        for number, source in enumerate(sources):
            shards = expand("data.precomputed", str(folder / split / f"{number}"), latents.access)
            if len(shards) != len(source.shards):
                raise ValueError(
                    f"data.precomputed: {folder / split / str(number)} has {len(shards)} shards, "
                    f"expected {len(source.shards)}. Remove {folder} and make it again: "
                    "python -m salon.data precompute KEY=VALUE ..."
                )
            made.append(Source(source.name, shards, source.weight))
        return made, latents

    # -- for the Trainer -----------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        ranks, rank = self._ranks()
        sources, reader = self._fed("train")
        shards = sum(len(source.shards) for source in sources)
        lanes, stride = min(self.lanes, shards), ranks * max(1, self.workers)
        if lanes % stride:
            raise ValueError(
                f"data.lanes={self.lanes} over {shards} shards makes {lanes} lanes, which "
                f"{ranks} ranks x {max(1, self.workers)} workers do not divide. Set data.lanes to "
                f"a multiple of {stride}, at most the number of shards, or lower data.workers"
            )
        wanted = self.batch_size * ranks
        if (found := self._count_up_to(wanted, sources, reader)) < wanted:
            raise ValueError(
                f"data.train has {found} samples, fewer than one batch of {self.batch_size} for "
                f"{ranks} ranks. Lower the batch size: batch_size=N"
            )
        stream = TrainStream(
            sources, reader, self.patience, batch_size=self.batch_size, seed=self.seed,
            lanes=lanes, window=self.window, buckets=self.buckets, rank=rank, ranks=ranks,
            start=self.position.start, cursors=self.position.cursors,
        )  # fmt: skip
        return self._loader(stream, self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        ranks, rank = self._ranks()
        wanted = self.batch_size * ranks
        found = self._count_up_to(self.val_samples, *self._fed("val"))
        steps = found // wanted
        if not steps:
            raise ValueError(
                f"data.val gives {found} samples (data.val_samples={self.val_samples} at most), "
                f"fewer than one batch of {self.batch_size} for {ranks} ranks. Lower the batch "
                "size: batch_size=N"
            )
        split = self._fixed(*self._fed("val"), batches=steps * ranks, rank=rank, ranks=ranks)
        return self._loader(split, min(1, self.workers))

    def _fixed(
        self, sources: list[Source], reader: Reads, *, batches: int, rank: int = 0, ranks: int = 1
    ) -> FixedSplit:
        if isinstance(reader, Reader):
            reader = reader._replace(crop="center")
        return FixedSplit(
            sources, reader, self.patience, batch_size=self.batch_size,
            batches=batches, rank=rank, ranks=ranks,
        )  # fmt: skip

    def _loader(self, dataset: Any, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(),
            multiprocessing_context=self.start_method if workers else None,
        )  # fmt: skip

    def _ranks(self) -> tuple[int, int]:
        """How many there are, and which one this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _count_up_to(self, wanted: int, sources: list[Source], reader: Reads) -> int:
        """How many candidates there are, looked into no further than `wanted` needs."""
        found = 0
        for source in sources:
            for shard in source.shards:
                found += self._count(shard, source.name, reader)
                if found >= wanted:
                    return wanted
        return found

    def _count(self, shard: str, source: str, reader: Reads) -> int:
        filtered = reader is self.reader and self.reader.filters
        if not filtered and (told := listed(shard)) is not None:
            return told
        return sum(isinstance(x, Candidate) for x in reader.candidates(shard, source))

    # -- where the run stands ------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Called when the Trainer is about to use a batch: prefetched ones do not count."""
        if batch.trace is None:
            return batch
        self.position.begins(batch.trace)
        return batch._replace(trace=None)

    @property
    def tally(self) -> Tally:
        """What this rank was trained on, and what was left out on the way."""
        return self.position.tally

    def settle(self) -> None:
        """Counts the last batch too, where it is done."""
        self.position.settle(self.position.units(self._processed(), self._ranks()[0]))

    def _processed(self) -> int:
        assert self.trainer is not None
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    def state_dict(self) -> dict[str, Any]:
        """Plain, and the same on every rank."""
        self.settle()
        return {**self.position.state(self._processed(), self._ranks()[0]), **self._told()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in self._told().items():
            if state_dict.get(key) != value:
                raise ValueError(
                    f"resume: the run was trained with {key}={state_dict.get(key)} and is now "
                    f"asked to go on with {value}; the stream could not continue where it "
                    f"stopped. Give the same {key}"
                )
        self.position.load(state_dict, first=self._ranks()[1] == 0)

    def _told(self) -> dict[str, Any]:
        """What the sequence of batches depends on; not the number of ranks and workers."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "identity": self.identity,
            "precomputed": self._made[1].about.networks if self._made else None,
            "buckets": [list(size) for size in self.buckets] or None,
        }

    # -- for everybody else --------------------------------------------------------------------

    def batches(self, split: str, number: int) -> Iterator[Batch]:
        """The first batches of a split, the same on every rank; fewer where it has fewer."""
        yield from self._first(self.sources(split), self.reader, number)

    def first_batches(self, number: int) -> Iterator[Batch | Latents]:
        """Of the training split as a model is fed it, always the same ones, in order."""
        yield from self._first(*self._fed("train"), number)

    def _first(self, sources: list[Source], reader: Reads, number: int) -> Iterator[Any]:
        number = self._count_up_to(number * self.batch_size, sources, reader) // self.batch_size
        yield from self._fixed(sources, reader, batches=number)

    def captions(self, split: str, limit: int) -> Iterator[str]:
        """The captions of a split, at most `limit`, without decoding a picture."""
        return itertools.islice((caption for caption, _ in self._captioned(split)), limit)

    def prompts(self, split: str, limit: int) -> list[Prompt]:
        """What to draw: the `prompt` of a json that has one (described exactly), or the caption."""
        return [
            _exact(found) or Prompt(caption, None, found.encoded.key)
            for caption, found in itertools.islice(self._captioned(split), limit)
        ]

    def _captioned(self, split: str) -> Iterator[tuple[str, Candidate]]:
        chance = np.random.default_rng(0)  # where one of several captions is drawn
        for item in in_order(self.sources(split), self.reader):
            drop = item if isinstance(item, Drop) else None
            if isinstance(item, Candidate):
                try:
                    yield self.reader.caption_of(item, chance), item
                    continue
                except Bad as bad:
                    drop = item.drop(bad)
            if drop is not None and not drop.reason.startswith(FILTERED):
                log.warning("left out %s: %s, %s", drop.place, drop.reason, drop.detail)


def _exact(found: Candidate) -> Prompt | None:
    """The json's own prompt; most data sets have none, and some have no valid json."""
    try:
        told = metadata.parse(found.encoded.members["json"])["prompt"]
        return Prompt(told["caption"], told["asked"], found.encoded.key)
    except (Bad, LookupError, TypeError):
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

    @functools.cached_property
    def identity(self) -> str:
        told = json.dumps([self.settings.identity, self._rules()])
        return hashlib.sha256(told.encode()).hexdigest()[:10]

    def prepare_data(self) -> None:
        shapes.prepare(self.root, self.settings)

    def sources(self, split: str) -> list[Source]:
        self.prepare_data()
        return super().sources(split)

"""Runs a model's frozen networks over its data once, so that training need not.

    pictures ── autoencoder ──> mean, std of the latent  ─┐
    captions ── text tower  ──> tokens, pooled            ┴─> shards of their own, float16

`salon.data.precomputed` says what is in them, and reads them. A job that was stopped goes on with
the first shard that is missing; two jobs for the same folder take turns.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from salon import checkpoint, files
from salon.data import captions, metadata
from salon.data.convert.base import shard_writer
from salon.data.lane import Source
from salon.data.precomputed import CLAIM, FIELD, INDEX, LAYOUT, Index, packed
from salon.data.reader import Reader, Sample
from salon.data.reasons import UNREACHABLE, Bad
from salon.data.tally import Drop, Tally
from salon.models.base import Trainee
from salon.types import Batch

SPLITS = ("train", "val")  # what a Trainer reads


def identities(model: Trainee) -> dict[str, str]:
    """The digests of the frozen networks that may be run before the training.

    Raises ValueError where the model has none.
    """
    if not model.encoders():
        raise ValueError(
            f"data.precomputed: {type(model).__name__} needs the pictures themselves; of the "
            "families, latent_diffusion can do without. Say data.precomputed=false"
        )
    return {name: checkpoint.digest_of(part) for name, part in model.encoders().items()}


class Read(NamedTuple):
    """A sample with everything that its shard will hold."""

    sample: Sample
    captions: list[str]  # all that may be drawn for it
    text: bytes | None  # its .txt
    record: dict[str, Any]  # its .json


class Piece(NamedTuple):
    """A part of one shard."""

    number: int  # of the shard
    read: list[Read]
    drops: list[Drop]
    last: bool


class Pieces(IterableDataset[Piece]):
    """Whole shards, each read by one worker, in pieces of at most `size` samples."""

    def __init__(self, source: Source, numbers: Sequence[int], reader: Reader, size: int) -> None:
        self.source, self.numbers, self.reader, self.size = source, list(numbers), reader, size

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in self.numbers[first::step]:
            read: list[Read] = []
            drops: list[Drop] = []
            for found in self._shard(number):
                if isinstance(found, Drop):
                    drops.append(found)
                else:
                    read.append(found)
                if len(read) == self.size:
                    yield Piece(number, read, drops, last=False)
                    read, drops = [], []
            yield Piece(number, read, drops, last=True)

    def _shard(self, number: int) -> Iterator[Read | Drop]:
        chance = np.random.default_rng(0)  # of a caption that is not used: all are kept
        for item in self.reader.candidates(self.source.shards[number], self.source.name):
            if isinstance(item, Drop):
                yield item
                continue
            made = self.reader.decode(item, chance)
            if isinstance(made, Drop):
                yield made
                continue
            members = item.encoded.members
            known = captions.usable(members, item.metadata, self.reader.caption)
            several = list(dict.fromkeys(text for _, texts in known for text in texts))
            yield Read(made, several, members.get("txt"), _record(members))


def _record(members: dict[str, bytes]) -> dict[str, Any]:
    """A broken json is no reason to lose a sample where nobody asks for it."""
    try:
        return metadata.parse(members["json"])
    except (Bad, KeyError):
        return {}


# -- the job -----------------------------------------------------------------------------------


def write(
    model: Any, data: Any, *, batch_size: int, workers: int, device: torch.device
) -> tuple[Path, Tally]:
    """Fills the folder of this model's networks and this data, and says what was left out.

    Raises ValueError where the model has no such networks, where more is bad than
    data.errors.max_bad_fraction allows, and where the folder cannot be written.
    """
    networks = identities(model)
    data.check_squares("precompute")
    folder, tally = data.made_by(networks), Tally()
    model = model.to(device).eval()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(folder / ".lock"),
            Progress(*columns) as progress,
        ):
            claim(folder, {"layout": LAYOUT, "data": data.read_identity, "networks": networks})
            names = {split: [s.name for s in data.sources(split)] for split in SPLITS}
            total = sum(len(data.shards(split)) for split in SPLITS)
            task = progress.add_task("precomputing shards", total=total, told="")
            for split in SPLITS:
                for number, source in enumerate(data.sources(split)):
                    job = Job(model, data.reader, networks, source, folder / split / f"{number}")
                    for done in job.run(batch_size, workers, data.start_method):
                        tally.merge(done)
                        tally.check(data.patience)
                        told = f"{tally.used.total():,} samples, {tally.bad:,} bad"
                        progress.update(task, advance=1, told=told)
            index = Index(LAYOUT, data.read_identity, networks, *sizes(model, data), names)
            files.write(folder / INDEX, json.dumps(index._asdict(), indent=2))
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} cannot be written ({error}). Name another folder: "
            "data.precomputed_dir=FOLDER"
        ) from error
    return folder, tally


def claim(folder: Path, told: dict[str, Any]) -> None:
    """Raises ValueError where the folder holds what was made of something else."""
    file = folder / CLAIM
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        found = None if any(folder.glob("*/*/*.tar")) else told
    if found != told:
        raise ValueError(
            f"data.precomputed={str(folder)!r} holds shards of other data or networks ({found}) "
            f"than these ({told}). Name another folder, or say data.precomputed=true"
        )
    files.write(file, json.dumps(told))


@torch.no_grad()
def sizes(model: Any, data: Any) -> tuple[list[int], int, int]:
    """Of a sample's latent (2, C, h, w), D and D'."""
    side = data.reader.resolution
    black = torch.zeros(1, 3, side, side, device=model.device)
    mean, _ = model.moments(Batch(black, [""], [""]))
    text = model.text([""])
    return [2, *mean.shape[1:]], text.tokens.shape[2], text.pooled.shape[1]


class Job:
    """One source of a split."""

    def __init__(
        self, model: Any, reader: Reader, networks: dict[str, str], source: Source, folder: Path
    ) -> None:
        self.model, self.reader, self.networks = model, reader, networks
        self.source, self.folder = source, folder

    def run(self, batch_size: int, workers: int, start_method: str | None) -> Iterator[Tally]:
        """What came of each shard, of those first that an earlier run finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = []
        for number in range(len(self.source.shards)):
            if self.stats(number).exists():
                yield Tally.of(json.loads(self.stats(number).read_bytes())["report"])
            else:
                missing.append(number)
        pieces = Pieces(self.source, missing, self.reader, batch_size)
        workers = min(workers, len(missing))
        loader = DataLoader(
            pieces, batch_size=None, num_workers=workers,
            multiprocessing_context=start_method if workers else None,
        )  # fmt: skip
        written: dict[int, tuple[contextlib.ExitStack, Any, Tally]] = {}  # as many as workers
        with contextlib.ExitStack() as failing:
            for number, read, drops, last in loader:
                if number not in written:
                    stack = failing.enter_context(contextlib.ExitStack())
                    tar = stack.enter_context(shard_writer(self.folder / f"{number:08d}.tar"))
                    written[number] = stack, tar, Tally()
                stack, tar, tally = written[number]
                for members in self.encoded(read):
                    tar.write(members)
                for drop in drops:
                    if drop.reason in UNREACHABLE:  # it would be missing for good
                        raise ValueError(
                            f"{drop.shard} cannot be fetched: {drop.reason}: {drop.detail}. What "
                            "is done is kept; run the same command again when it can be, or leave "
                            "it out of data.train and data.val"
                        )
                tally.add({self.source.name: len(read)}, drops)
                if last:
                    stack.close()
                    del written[number]
                    told = {"successes": tally.used.total(), "report": tally.report()}
                    files.write(self.stats(number), json.dumps(told, indent=2))
                    yield tally

    def stats(self, number: int) -> Path:
        """Written last, so that it marks a whole shard."""
        return self.folder / f"{number:08d}_stats.json"

    @torch.no_grad()
    def encoded(self, read: list[Read]) -> Iterator[dict[str, Any]]:
        """The members of each sample."""
        if not read:
            return
        device = self.model.device
        batch = self.reader.collate([one.sample for one in read])
        moments = torch.stack(
            self.model.moments(batch._replace(images=batch.images.to(device))), 1
        )  # (N, 2, C, h, w)
        text = self.model.text([caption for one in read for caption in one.captions])
        lengths = text.mask.sum(1).tolist()
        first = 0
        for one, latent in zip(read, moments, strict=True):
            mine = slice(first, first + len(one.captions))
            first = mine.stop
            record = {
                **one.record,
                FIELD: {
                    "networks": self.networks,
                    "captions": one.captions,
                    "lengths": lengths[mine],
                },
            }
            yield {
                "__key__": one.sample.key,
                "latent": packed(latent),
                "tokens": packed(text.tokens[mine][text.mask[mine]]),
                "pooled": packed(text.pooled[mine]),
                **({"txt": one.text} if one.text is not None else {}),
                "json": json.dumps(record).encode(),
            }

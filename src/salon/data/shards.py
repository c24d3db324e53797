"""Reading LAION-style shards: which shards, in which order, and what a sample becomes.

The training stream is a pure function of (seed, lanes, window, batch size, shards): it is dealt to
a fixed number of lanes, each lane walks its own shards pass after pass and cuts whole batches from
them, and batch i comes from lane i mod lanes. Ranks and workers only divide the batches among
themselves, so their number changes nothing about the sequence, every rank gets as many full
batches as every other, and starting at batch k gives what an uninterrupted run would have seen.

Shards are untrusted input: nothing in them is unpickled, `pipe:` is refused, and a picture's size
is read from its header before it is decoded.
"""

from __future__ import annotations

import functools
import glob
import io
import itertools
import json
import logging
import os
import struct
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import IterableDataset, get_worker_info

from salon.types import Batch

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")
PICTURES = ("png", "jpg", "jpeg", "webp")
MEMBERS = (*PICTURES, "txt", "json")  # whatever else a shard holds is not even read
# What Pillow raises on a broken file; anything else is a mistake of ours and shall be seen.
UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
PATIENCE = 1000  # bad samples in a row: then it is the data that is wrong, not a sample
Encoded = dict[str, Any]  # extension -> bytes, and webdataset's __key__ and __url__


class BadSample(Exception):
    """A sample that cannot be used; the message says why. It is skipped, never fatal."""


class Sample(NamedTuple):
    image: NDArray[np.uint8]  # (H, W, 3)
    caption: str
    key: str


def expand(key: str, patterns: str | Sequence[str]) -> list[str]:
    """The shards that folders, globs and brace lists name, sorted within each pattern.

    Raises ValueError, naming the config `key`, where one names nothing or is no local file.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith("pipe:") or "://" in pattern:
            raise ValueError(
                f"{key}={pattern!r}: expected local .tar files (a folder, a glob, or a brace list "
                "like 'data/laion/{00000..00099}.tar'); commands and URLs are not opened"
            )
        names = wds.shardlists.expand_urls(pattern)
        for name in names:
            shards = sorted(glob.glob(f"{name}/*.tar" if Path(name).is_dir() else name))
            if not shards:
                raise ValueError(
                    f"{key}={pattern!r}: no shard there ({name!r} matches no .tar file). Expected "
                    f"a folder of .tar files, a glob or a brace list: {key}=FOLDER"
                )
            found += shards
    return found


def encoded(shard: str) -> Iterator[Encoded]:
    """The samples of a shard, undecoded, in the order in which they stand.

    A shard that breaks off is a warning, and what stands before the break is kept.

    Members are grouped by webdataset: a key ends at its first dot, and members of one key stand
    together. Names that keep to neither come out as samples without a picture or a caption.
    """
    return wds.tariterators.group_by_keys(_members(shard), handler=_first_stays)


def _members(shard: str) -> Iterator[dict[str, Any]]:
    try:
        # Opened here: webdataset's own opener would run a file name that begins with `pipe:`.
        with open(shard, "rb") as stream:
            yield from wds.tariterators.tar_file_expander(
                [{"url": shard, "stream": stream}],
                handler=wds.reraise_exception,
                select_files=_is_known,
            )
            # A cut between two members looks like an end to tarfile; an end is 1,024 zeros.
            stream.seek(-1024, os.SEEK_END)
            if any(stream.read()):
                raise tarfile.ReadError("no end-of-archive mark")
    except (tarfile.TarError, OSError, ValueError) as error:
        log.warning("shard %s breaks off and is left there: %s", shard, error)


def _is_known(name: str) -> bool:
    return name.rpartition(".")[2].lower() in MEMBERS


def _first_stays(error: Exception) -> bool:
    """Goes on after a name that stands twice in a sample, for which webdataset has ValueError."""
    if not isinstance(error, ValueError):
        raise error
    log.warning("the first of two members stays: %s", error.args[0])
    return True


@functools.lru_cache(maxsize=4096)
def count(shard: str) -> int:
    """How many samples a shard holds: from its `_stats.json`, or by reading it."""
    stats = Path(shard.removesuffix(".tar") + "_stats.json")
    if stats.exists():
        return int(json.loads(stats.read_text())["successes"])
    return sum(1 for _ in encoded(shard))


def count_up_to(wanted: int, shards: Iterable[str]) -> int:
    """How many samples the shards hold, looked into no further than `wanted` needs."""
    found = 0
    for shard in shards:
        found += count(shard)
        if found >= wanted:
            return wanted
    return found


def caption_of(sample: Encoded) -> str:
    """Raises BadSample where there is none, where it is blank, and where it is not UTF-8."""
    if "txt" not in sample:
        raise BadSample(f"{_place(sample)}: it has no .txt, only {_names(sample)}")
    try:
        caption = sample["txt"].decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"{_place(sample)}: the caption is not UTF-8 ({error})") from error
    if not caption:
        raise BadSample(f"{_place(sample)}: the caption is empty")
    return caption


def _place(sample: Encoded) -> str:
    return f"{sample['__url__']}:{sample['__key__']}"


def _names(sample: Encoded) -> str:
    return ", ".join(f".{name}" for name in sample if not name.startswith("__")) or "nothing"


def decode(sample: Encoded, *, resolution: int, max_pixels: int) -> Sample:
    """Shorter side to `resolution` (bicubic, antialiased), then the central square.

    Raises BadSample.
    """
    caption = caption_of(sample)
    picture = next((sample[name] for name in PICTURES if name in sample), None)
    if picture is None:
        raise BadSample(f"{_place(sample)}: it has no {', '.join(PICTURES)}, only {_names(sample)}")
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadSample(
                    f"{_place(sample)}: {image.width}x{image.height} is over data.max_pixels"
                )
            # A JPEG is decoded at 1/2, 1/4 or 1/8 where twice the resolution is left to resize.
            image.draft(None, (2 * resolution, 2 * resolution))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(_square(_to_rgb(image), resolution))
    except UNREADABLE as error:
        raise BadSample(f"{_place(sample)}: {error}") from error
    return Sample(pixels, caption, sample["__key__"])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips them to white
        depth = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(depth.astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, resolution: int) -> Image.Image:
    if image.size == (resolution, resolution):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)


def collate(samples: Sequence[Sample]) -> Batch:
    pixels = torch.from_numpy(np.stack([sample.image for sample in samples]))  # (N, H, W, 3)
    images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)
    return Batch(images, [s.caption for s in samples], [s.key for s in samples])


class Reader(NamedTuple):
    """How a sample is read; shared by the training stream and the fixed splits."""

    resolution: int
    max_pixels: int

    def good(self, samples: Iterable[Encoded]) -> Iterator[Sample]:
        """Decoded samples; a bad one is skipped with a warning that says why.

        Raises ValueError after PATIENCE bad ones in a row.
        """
        bad = 0
        for sample in samples:
            try:
                decoded = decode(sample, resolution=self.resolution, max_pixels=self.max_pixels)
            except BadSample as reason:
                log.warning("skipped a bad sample, %s", reason)
                bad += 1
                if bad == PATIENCE:
                    raise ValueError(
                        f"{bad:,} bad samples in a row, the last {reason}. Leave this shard out, "
                        "or mend what it is made of"
                    ) from reason
            else:
                bad = 0
                yield decoded


class TrainStream(IterableDataset[Batch]):
    """The endless training stream, as one rank sees it from its batch `start` on."""

    def __init__(
        self,
        shards: Sequence[str],
        reader: Reader,
        *,
        batch_size: int,
        seed: int,
        lanes: int,  # a multiple of ranks x workers, and at most the number of shards
        window: int,  # samples, still encoded, that a lane shuffles among themselves
        rank: int,
        ranks: int,
        start: int,  # batches that all ranks together have seen
    ) -> None:
        self.shards, self.reader, self.batch_size = list(shards), reader, batch_size
        self.seed, self.lanes, self.window = seed, lanes, window
        self.rank, self.ranks, self.start = rank, ranks, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stride = self.ranks * workers
        assert self.lanes % stride == 0, (self.lanes, self.ranks, workers)
        # The DataLoader takes from its workers in turn, so worker w serves this rank's batches
        # w, w + workers, ...; counted from `start`, which all ranks share.
        first = self.start + self.rank + number * self.ranks
        streams: dict[int, Iterator[Batch]] = {}
        for unit in itertools.count(first, stride):
            lane = unit % self.lanes
            if lane not in streams:
                streams[lane] = self._lane(lane, unit // self.lanes)
            yield next(streams[lane])

    def _lane(self, lane: int, first: int) -> Iterator[Batch]:
        """The lane's batches from its `first` on; those before it are read and passed over."""
        samples = self.reader.good(self._shuffled(lane))
        samples = itertools.islice(samples, first * self.batch_size, None)
        while True:
            yield collate(list(itertools.islice(samples, self.batch_size)))

    def _shuffled(self, lane: int) -> Iterator[Encoded]:
        """Whole windows of the lane's walk, each in an order of its own."""
        walk = self._walk(lane)
        for number in itertools.count():
            window = list(itertools.islice(walk, self.window))
            order = np.random.default_rng([self.seed, 1, lane, number]).permutation(len(window))
            yield from (window[i] for i in order)

    def _walk(self, lane: int) -> Iterator[Encoded]:
        """The lane's shards, pass after pass; each pass deals all shards anew to the lanes."""
        for passage in itertools.count():
            order = np.random.default_rng([self.seed, 0, passage]).permutation(len(self.shards))
            found = False
            for index in order[lane :: self.lanes]:
                for sample in encoded(self.shards[index]):
                    found = True
                    yield sample
            # An empty shard among others is no harm: the next pass deals this lane another one.
            if not found and not any(any(encoded(shard)) for shard in self.shards):
                raise ValueError(
                    f"data.train: no sample in any of {len(self.shards)} shards. Look into one: "
                    f"tar tf {self.shards[0]}"
                )


class FixedSplit(IterableDataset[Batch]):
    """The first batches of a split, always the same ones, in order; equal in number on every rank.

    Batch i goes to rank i mod ranks.
    """

    def __init__(
        self, shards: Sequence[str], reader: Reader, *, batch_size: int, batches: int,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        assert batches % ranks == 0, (batches, ranks)
        self.shards, self.reader, self.batch_size = list(shards), reader, batch_size
        self.batches, self.rank, self.ranks = batches, rank, ranks

    def __len__(self) -> int:
        return self.batches // self.ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is None or worker.num_workers == 1, "a fixed split is read by one worker"
        samples = self.reader.good(itertools.chain.from_iterable(map(encoded, self.shards)))
        for number in range(self.batches):
            batch = list(itertools.islice(samples, self.batch_size))
            if len(batch) < self.batch_size:
                if number == 0:
                    raise ValueError(
                        f"{self.shards[0]} and its neighbours hold {len(batch)} good samples, not "
                        f"one batch of {self.batch_size}. Lower the batch size: batch_size=N"
                    )
                log.warning(
                    "%s and its neighbours hold bad samples: %d whole batches are read, not %d",
                    self.shards[0], number, self.batches,
                )  # fmt: skip
                return
            if number % self.ranks == self.rank:
                yield collate(batch)

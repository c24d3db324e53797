"""In which order samples come, the same whatever the number of ranks and workers.

The training stream is a pure function of (seed, lanes, window, batch size, shards, rules). It is
dealt to a fixed number of lanes; each lane walks its own shards pass after pass and cuts whole
batches from them, and batch i comes from lane i mod lanes. Ranks and workers only divide the
batches among themselves, so their number changes nothing about the sequence, and every rank gets
as many full batches as every other.

    shards of a pass, shuffled ──> dealt to lanes ──> candidates ──> windows, shuffled ──> samples
                                                                                   └──> batches

Every batch carries a `Trace`: what was dropped on the way to it, and where its lane stands after
it. So a run goes on from the last batch that was trained on, whatever was prefetched, by reading
one window of each lane again, without decoding what it has seen.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from salon.data.buckets import BucketLane, Size
from salon.data.lane import BEGIN, IDLE, SAMPLE, SOURCE, Lane, LaneCursor, Source
from salon.data.reader import Candidate, Reads
from salon.data.reasons import FILTERED
from salon.data.tally import Drop, Patience, Tally
from salon.types import Batch

log = logging.getLogger(__name__)

BLOCK = 1024  # draws of sources that one generator makes


class Trace(NamedTuple):
    """Where a batch stood, for whoever counts and for who resumes."""

    unit: int  # its number among the batches of all ranks
    lane: int
    cursor: LaneCursor  # of the lane after this batch
    tally: Tally  # of its samples, and of what was dropped on the way to it


class Mixture:
    """One lane of all sources: each step's source is drawn by the sources' weights."""

    def __init__(self, lanes: Sequence[Lane], *, seed: int, lane: int) -> None:
        self.lanes, self.seed, self.lane = lanes, seed, lane
        self.collate = lanes[0].reader.collate
        weights = np.array([lane.source.weight for lane in lanes], dtype=np.float64)
        self.shares = weights / weights.sum()

    def batches(self, start: LaneCursor, size: int) -> Iterator[tuple[Batch, LaneCursor, Tally]]:
        """Each with the place after it, and what was counted on the way to it."""
        steps = [lane.steps(at) for lane, at in zip(self.lanes, start.sources, strict=True)]
        cursors, drawn = list(start.sources), start.drawn
        sources = self.sources(drawn)
        while True:
            made: list[Any] = []
            tally = Tally()
            while len(made) < size:
                which = next(sources)
                step = next(steps[which])
                made += step.samples
                tally.merge(step.drops)
                tally.used[self.lanes[which].source.name] += len(step.samples)
                cursors[which] = step.cursor
                drawn += 1
            yield self.collate(made), LaneCursor(drawn, tuple(cursors)), tally

    def sources(self, drawn: int) -> Iterator[int]:
        """Which source each step is of, from step `drawn` on."""
        if len(self.lanes) == 1:
            yield from itertools.repeat(0)
        for block in itertools.count(drawn // BLOCK):
            rng = np.random.default_rng([self.seed, SOURCE, self.lane, block])
            choices = rng.choice(len(self.lanes), BLOCK, p=self.shares)
            yield from (int(i) for i in choices[max(0, drawn - block * BLOCK) :])


class TrainStream(IterableDataset[Batch]):
    """The endless training stream, as one rank sees it from batch `start` of all ranks on."""

    def __init__(
        self,
        sources: Sequence[Source],
        reader: Reads,
        patience: Patience,
        *,
        batch_size: int,
        seed: int,
        lanes: int,  # a multiple of ranks x workers
        window: int,  # candidates that a lane shuffles among themselves
        buckets: Sequence[Size] = (),  # none: all pictures are cut to the same square
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,  # batches that all ranks together have seen
        cursors: Mapping[int, LaneCursor] | None = None,  # where lanes stand then
    ) -> None:
        self.sources, self.reader, self.patience = list(sources), reader, patience
        self.batch_size, self.seed, self.lanes, self.window = batch_size, seed, lanes, window
        self.buckets = tuple(buckets)
        self.rank, self.ranks, self.start, self.cursors = rank, ranks, start, dict(cursors or {})

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stride = self.ranks * workers
        assert self.lanes % stride == 0, (self.lanes, self.ranks, workers)
        # The DataLoader takes from its workers in turn, so worker w serves this rank's batches
        # w, w + workers, ...; counted from `start`, which all ranks share.
        first = self.start + self.rank + number * self.ranks
        walks: dict[int, Iterator[tuple[Batch, LaneCursor, Tally]]] = {}
        for unit in itertools.count(first, stride):
            lane = unit % self.lanes
            if lane not in walks:
                walks[lane] = self._batches(lane)
            batch, cursor, tally = next(walks[lane])
            yield batch._replace(trace=Trace(unit, lane, cursor, tally))

    def _batches(self, lane: int) -> Iterator[tuple[Batch, LaneCursor, Tally]]:
        own = {"buckets": self.buckets, "batch_size": self.batch_size} if self.buckets else {}
        make: Any = BucketLane if self.buckets else Lane
        walks = [
            make(
                source=source, reader=self.reader, patience=self.patience, seed=self.seed,
                lane=lane, lanes=self.lanes, window=self.window, number=number, **own,
            )
            for number, source in enumerate(self.sources)
        ]  # fmt: skip
        mixture = Mixture(walks, seed=self.seed, lane=lane)
        begin = LaneCursor(0, (BEGIN,) * len(self.sources))
        return mixture.batches(self.cursors.get(lane, begin), self.batch_size)


class FixedSplit(IterableDataset[Batch]):
    """The first batches of a split, always the same ones, in order; equal in number on every rank.

    Batch i goes to rank i mod ranks. What is dropped on the way is told by a warning.
    """

    def __init__(
        self, sources: Sequence[Source], reader: Reads, patience: Patience, *,
        batch_size: int, batches: int, rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        assert batches % ranks == 0, (batches, ranks)
        self.sources, self.reader, self.patience = list(sources), reader, patience
        self.batch_size, self.batches, self.rank, self.ranks = batch_size, batches, rank, ranks

    def __len__(self) -> int:
        return self.batches // self.ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is None or worker.num_workers == 1, "a fixed split is read by one worker"
        samples = self.samples()
        where = f"{self.sources[0].shards[0]} and its neighbours"
        for number in range(self.batches):
            batch = list(itertools.islice(samples, self.batch_size))
            if len(batch) < self.batch_size:
                if number == 0:
                    raise ValueError(
                        f"{where} hold {len(batch)} good samples, not one batch of "
                        f"{self.batch_size}. Lower the batch size: batch_size=N"
                    )
                log.warning(
                    "%s hold bad samples: %d whole batches are read, not %d",
                    where, number, self.batches,
                )  # fmt: skip
                return
            if number % self.ranks == self.rank:
                yield self.reader.collate(batch)

    def samples(self) -> Iterator[Any]:
        in_a_row = 0
        for number, item in enumerate(in_order(self.sources, self.reader)):
            chance = np.random.default_rng([0, SAMPLE, number]) if self.reader.draws else IDLE
            made = item if isinstance(item, Drop) else self.reader.decode(item, chance)
            if not isinstance(made, Drop):
                in_a_row = 0
                yield made
            elif not made.reason.startswith(FILTERED):
                log.warning("left out %s: %s, %s", made.place, made.reason, made.detail)
                in_a_row += 1
                self.patience.bear(in_a_row, made)


def in_order(sources: Sequence[Source], reader: Reads) -> Iterator[Candidate | Drop]:
    """All of them, shard after shard."""
    for source in sources:
        for shard in source.shards:
            yield from reader.candidates(shard, source.name)

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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from salon.data.reader import Candidate, Reader, Sample, collate
from salon.data.reasons import FILTERED
from salon.data.tally import Drop, Patience, Tally
from salon.types import Batch

log = logging.getLogger(__name__)

# The first numbers of each generator's seed after the run's own: what is drawn with it.
ORDER, WINDOW, SAMPLE, SOURCE = 0, 1, 2, 3
BLOCK = 1024  # draws of sources that one generator makes


class Source(NamedTuple):
    name: str
    shards: Sequence[str]
    weight: float  # its share of the samples, next to the others' weights


class Place(NamedTuple):
    """Before which candidate a walk stands."""

    passage: int  # passes that are done
    shard: int  # shards of this pass, of this lane, that are done
    item: int  # of this shard, candidates and drops that are done


class Cursor(NamedTuple):
    """Where a lane stands in one source."""

    place: Place  # where the window begins
    window: int  # windows that are done
    taken: int  # samples of this window that are done


class LaneCursor(NamedTuple):
    drawn: int  # samples that are done, of all sources
    sources: tuple[Cursor, ...]


BEGIN = Cursor(Place(0, 0, 0), 0, 0)


class Trace(NamedTuple):
    """Where a batch stood, for whoever counts and for who resumes."""

    unit: int  # its number among the batches of all ranks
    lane: int
    cursor: LaneCursor  # of the lane after this batch
    tally: Tally  # of its samples, and of what was dropped on the way to it


class Step(NamedTuple):
    """A sample, where the lane stands after it, and what was dropped before it."""

    sample: Sample
    cursor: Cursor
    drops: Tally


class Lane:
    """One lane's walk through one source."""

    def __init__(
        self, source: Source, reader: Reader, patience: Patience, *,
        seed: int, lane: int, lanes: int, window: int, number: int,
    ) -> None:  # fmt: skip
        self.source, self.reader, self.patience = source, reader, patience
        self.seed, self.lane, self.lanes, self.window = seed, lane, lanes, window
        self.salt = [number] if number else []  # of all sources but the first

    def steps(self, start: Cursor) -> Iterator[Step]:
        """Samples from `start` on, for ever. Raises ValueError where too many in a row are bad."""
        in_a_row = 0
        waiting = Tally()
        for cursor, window, after, drops in self.windows(start):
            if not cursor.taken:  # else they were told with the first sample of this window
                waiting.merge(drops)
            order = self.rng(WINDOW, self.lane, cursor.window).permutation(len(window))
            for taken in range(cursor.taken, len(window)):
                chance = self.chance(cursor.window, taken)
                sample = self.reader.decode(window[order[taken]], chance)
                if isinstance(sample, Drop):
                    waiting.add({}, [sample])
                    in_a_row += 1
                    self.patience.bear(in_a_row, sample)
                    continue
                in_a_row = 0
                done = cursor._replace(taken=taken + 1)
                if taken + 1 == len(window):
                    done = Cursor(after, cursor.window + 1, 0)
                yield Step(sample, done, waiting)
                waiting = Tally()

    def windows(self, start: Cursor) -> Iterator[tuple[Cursor, list[Candidate], Place, Tally]]:
        """Where each begins, its candidates, where the next begins, what was dropped meanwhile."""
        walk = self.walk(start.place)
        cursor = start
        while True:
            window: list[Candidate] = []
            drops = Tally()
            for place, item in walk:
                after = place
                if isinstance(item, Drop):
                    drops.add({}, [item])
                    continue
                window.append(item)
                if len(window) == self.window:
                    break
            yield cursor, window, after, drops
            cursor = Cursor(after, cursor.window + 1, 0)

    def walk(self, start: Place) -> Iterator[tuple[Place, Candidate | Drop]]:
        """The lane's shards, pass after pass; each item with the place after it."""
        for passage in itertools.count(start.passage):
            found = False
            mine = self.dealt(passage)
            for number in range(start.shard, len(mine)):
                items = self.reader.candidates(self.source.shards[mine[number]], self.source.name)
                first = start.item
                for place, item in enumerate(itertools.islice(items, first, None), first + 1):
                    found = found or isinstance(item, Candidate)
                    yield Place(passage, number, place), item
                start = Place(passage, number + 1, 0)
            # An empty shard among others is no harm: the next pass deals this lane another one.
            if not found and mine:
                self.expect_something()
            start = Place(passage + 1, 0, 0)

    def dealt(self, passage: int) -> list[int]:
        """This lane's shards of a pass. Fewer shards than lanes take turns, pass by pass."""
        count = len(self.source.shards)
        order = self.rng(ORDER, passage).permutation(count)
        first = self.lane if count >= self.lanes else (self.lane - passage) % self.lanes
        return [int(i) for i in order[first :: self.lanes]]

    def expect_something(self) -> None:
        """Raises ValueError where no shard of the source holds a candidate."""
        drops: Counter[str] = Counter()
        for shard in self.source.shards:
            for item in self.reader.candidates(shard, self.source.name):
                if isinstance(item, Candidate):
                    return
                drops[item.reason] += 1
        said = ", ".join(f"{reason} {n:,} times" for reason, n in drops.most_common(5))
        raise ValueError(
            f"data source {self.source.name!r}: no sample to train on in any of "
            f"{len(self.source.shards)} shards ({said or 'they are empty'}). Look at them: "
            f"python -m salon.data check {self.source.shards[0]}"
        )

    def chance(self, window: int, taken: int) -> np.random.Generator:
        """Of one sample's own draws, which depend on nothing but where it stands."""
        if not self.reader.draws:
            return IDLE
        return self.rng(SAMPLE, self.lane, window, taken)

    def rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what, *self.salt])


IDLE = np.random.default_rng(0)  # for readers that draw nothing


class Mixture:
    """One lane of all sources: each sample's source is drawn by the sources' weights."""

    def __init__(self, lanes: Sequence[Lane], *, seed: int, lane: int) -> None:
        self.lanes, self.seed, self.lane = lanes, seed, lane
        weights = np.array([lane.source.weight for lane in lanes], dtype=np.float64)
        self.shares = weights / weights.sum()

    def batches(self, start: LaneCursor, size: int) -> Iterator[tuple[Batch, LaneCursor, Tally]]:
        """Each with the place after it, and what was counted on the way to it."""
        steps = [lane.steps(at) for lane, at in zip(self.lanes, start.sources, strict=True)]
        cursors, drawn = list(start.sources), start.drawn
        sources = self.sources(drawn)
        while True:
            made: list[Sample] = []
            tally = Tally()
            for which in itertools.islice(sources, size):
                step = next(steps[which])
                made.append(step.sample)
                tally.merge(step.drops)
                tally.used[self.lanes[which].source.name] += 1
                cursors[which] = step.cursor
            drawn += size
            yield collate(made), LaneCursor(drawn, tuple(cursors)), tally

    def sources(self, drawn: int) -> Iterator[int]:
        """Which source each sample is of, from sample `drawn` on."""
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
        reader: Reader,
        patience: Patience,
        *,
        batch_size: int,
        seed: int,
        lanes: int,  # a multiple of ranks x workers
        window: int,  # candidates that a lane shuffles among themselves
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,  # batches that all ranks together have seen
        cursors: Mapping[int, LaneCursor] | None = None,  # where lanes stand then
    ) -> None:
        self.sources, self.reader, self.patience = list(sources), reader, patience
        self.batch_size, self.seed, self.lanes, self.window = batch_size, seed, lanes, window
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
        mixture = Mixture(
            [
                Lane(
                    source, self.reader, self.patience, seed=self.seed, lane=lane,
                    lanes=self.lanes, window=self.window, number=number,
                )
                for number, source in enumerate(self.sources)
            ],
            seed=self.seed,
            lane=lane,
        )  # fmt: skip
        begin = LaneCursor(0, (BEGIN,) * len(self.sources))
        return mixture.batches(self.cursors.get(lane, begin), self.batch_size)


class FixedSplit(IterableDataset[Batch]):
    """The first batches of a split, always the same ones, in order; equal in number on every rank.

    Batch i goes to rank i mod ranks. What is dropped on the way is told by a warning.
    """

    def __init__(
        self, sources: Sequence[Source], reader: Reader, patience: Patience, *,
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
                yield collate(batch)

    def samples(self) -> Iterator[Sample]:
        in_a_row = 0
        for number, item in enumerate(in_order(self.sources, self.reader)):
            chance = np.random.default_rng([0, SAMPLE, number]) if self.reader.draws else IDLE
            made = item if isinstance(item, Drop) else self.reader.decode(item, chance)
            if isinstance(made, Sample):
                in_a_row = 0
                yield made
            elif not made.reason.startswith(FILTERED):
                log.warning("left out %s: %s, %s", made.place, made.reason, made.detail)
                in_a_row += 1
                self.patience.bear(in_a_row, made)


def in_order(sources: Sequence[Source], reader: Reader) -> Iterator[Candidate | Drop]:
    """All of them, shard after shard."""
    for source in sources:
        for shard in source.shards:
            yield from reader.candidates(shard, source.name)

"""One lane's walk through the shards of one source: pass after pass, window by window, for ever."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from salon.data.reader import Candidate, Reads
from salon.data.reasons import BAD, SHARD
from salon.data.tally import Drop, Patience, Tally

# The first numbers of each generator's seed after the run's own: what is drawn with it.
ORDER, WINDOW, SAMPLE, SOURCE = 0, 1, 2, 3


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

    place: Place  # where the window begins; with buckets, where the one before it does
    window: int  # windows that are done
    taken: int  # samples of this window that are done
    waiting: tuple[int, ...] = ()  # with buckets: how many wait in each for its batch to be full


class LaneCursor(NamedTuple):
    drawn: int  # steps that are done, of all sources
    sources: tuple[Cursor, ...]


BEGIN = Cursor(Place(0, 0, 0), 0, 0)


class Step(NamedTuple):
    """A sample, or a whole batch of one bucket; where the lane stands after it."""

    samples: tuple[Any, ...]  # what the reader decodes to
    cursor: Cursor
    drops: Tally  # what was dropped before it


class Lane:
    """One lane's walk through one source."""

    def __init__(
        self, *, source: Source, reader: Reads, patience: Patience,
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
                yield Step((sample,), done, waiting)
                waiting = Tally()

    def windows(self, start: Cursor) -> Iterator[tuple[Cursor, list[Candidate], Place, Tally]]:
        """Where each begins, its candidates, where the next begins, what was dropped meanwhile."""
        walk = self.walk(start.place)
        cursor = start
        in_a_row = 0
        while True:
            window: list[Candidate] = []
            drops = Tally()
            for place, item in walk:
                after = place
                if isinstance(item, Drop):
                    drops.add({}, [item])
                    if item.reason in BAD:
                        in_a_row += 1
                        self.patience.bear(in_a_row, item)
                    continue
                in_a_row = 0
                window.append(item)
                if len(window) == self.window:
                    break
            yield cursor, window, after, drops
            cursor = Cursor(after, cursor.window + 1, 0)

    def walk(self, start: Place) -> Iterator[tuple[Place, Candidate | Drop]]:
        """The lane's shards, pass after pass; each item with the place after it."""
        lost = 0  # shards in a row that broke before they gave anything
        for passage in itertools.count(start.passage):
            found = False
            mine = self.dealt(passage)
            for number in range(start.shard, len(mine)):
                items = self.reader.candidates(self.source.shards[mine[number]], self.source.name)
                first, stood = start.item, start.item
                for place, item in enumerate(itertools.islice(items, first, None), first + 1):
                    if isinstance(item, Candidate):
                        found, stood = True, place
                    elif item.reason in SHARD:
                        lost = 0 if stood else lost + 1
                        self.patience.bear_shard(lost, item)
                    yield Place(passage, number, place), item
                lost = 0 if stood else lost
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

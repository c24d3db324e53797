"""Batches of one shape each, so that pictures keep more of their edges than a square leaves them.

Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
section 2.3: pictures are put into buckets of about equal area by their proportions, and a batch is
of one bucket. Here the proportions come from the headers, so that what waits for its batch to be
full waits encoded.

A bucket's picture waits for the window in which it was read and the one after it, no longer: so a
run that goes on finds all that waited by reading two windows of the lane. What is left then is
counted as `filter:bucket`; it happens to buckets that a window hardly fills once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from salon.data import image
from salon.data.lane import WINDOW, Cursor, Lane, Step
from salon.data.reader import Candidate, Reader, Sample, picture_of
from salon.data.reasons import FILTERED, Bad
from salon.data.settings import number
from salon.data.tally import Drop, Tally

Size = tuple[int, int]  # (width, height)


def make_buckets(*, resolution: int, step: int | None, max_aspect: float) -> tuple[Size, ...]:
    """The shapes whose sides are multiples of `step`, at most `resolution` squared in area.

    Of each width the highest that fits, and the same on its side; longer / shorter side is at most
    `max_aspect`. None for `step` gives none: pictures are cut to squares. From narrow to wide.

    Raises ValueError that names data.buckets and the setting.
    """
    if step is None:
        return ()
    if isinstance(step, bool) or not isinstance(step, int) or step < 1 or resolution % step:
        raise ValueError(
            f"data.buckets.step={step!r}: expected null, or pixels that divide "
            f"data.resolution={resolution}, such as {max(1, resolution // 4)}"
        )
    number("data.buckets.max_aspect", max_aspect, least=1)  # longer side over shorter side
    found = {(resolution, resolution)}
    for short in range(step, resolution, step):
        long = resolution**2 // short // step * step
        if long <= max_aspect * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found, key=lambda size: size[0] / size[1]))


def nearest(buckets: Sequence[Size], width: int, height: int) -> int:
    """The bucket whose proportions are the picture's, or nearly; in logarithms, so that a picture
    and the same picture on its side are equally far from theirs."""
    wanted = math.log(width / height)
    away = [abs(math.log(wide / high) - wanted) for wide, high in buckets]
    return away.index(min(away))


@dataclass
class Held:
    """A picture that waits for its batch to be full."""

    candidate: Candidate
    window: int
    taken: int
    made: Any = None  # a Sample or a Drop, once that was tried


class BucketLane(Lane):
    """A lane whose steps are whole batches, each of one bucket."""

    def __init__(
        self, reader: Reader, *, buckets: Sequence[Size], batch_size: int, **walk: Any
    ) -> None:
        super().__init__(reader=reader, **walk)
        self.pictures, self.buckets, self.batch_size = reader, buckets, batch_size
        self.in_a_row = 0  # bad ones

    def steps(self, start: Cursor) -> Iterator[Step]:
        """Batches from `start` on, for ever.

        Raises ValueError where too many in a row are bad, and where no bucket is ever full.
        """
        held: list[list[Held]] = [[] for _ in self.buckets]
        refused = 0  # in a row, by their headers
        drops, quiet, begun = Tally(), 0, start.place
        before = (start.window, start.taken)  # what stands before this was told, and is only held
        first = Cursor(start.place, max(0, start.window - 1), 0)
        for cursor, window, _, lost in self.windows(first):
            if (cursor.window, 0) >= before:
                drops.merge(lost)
            quiet += cursor.window > start.window
            order = self.rng(WINDOW, self.lane, cursor.window).permutation(len(window))
            for taken, which in enumerate(order):
                one = Held(window[which], cursor.window, taken)
                told = (cursor.window, taken) < before
                bucket = self.bucket_of(one.candidate)
                if isinstance(bucket, Drop):
                    if not told:
                        drops.add({}, [bucket])
                        refused += 1
                        self.patience.bear(refused, bucket)
                    continue
                refused = 0
                held[bucket].append(one)
                if told and (cursor.window, taken + 1) == before:
                    held = [
                        line[len(line) - count :]
                        for line, count in zip(held, start.waiting, strict=True)
                    ]
                batch = () if told else self.full(held[bucket], self.buckets[bucket])
                if batch:
                    drops.add({}, [x.made for x in held[bucket] if isinstance(x.made, Drop)])
                    held[bucket] = []
                    waiting = tuple(len(line) for line in held)
                    yield Step(batch, Cursor(begun, cursor.window, taken + 1, waiting), drops)
                    drops, quiet = Tally(), 0
            self.expect_batches(quiet)
            for line, size in zip(held, self.buckets, strict=True):
                drops.add({}, [self.left(x, size) for x in line if x.window < cursor.window])
            held = [[x for x in line if x.window == cursor.window] for line in held]
            begun = cursor.place

    def bucket_of(self, candidate: Candidate) -> int | Drop:
        try:
            shown = image.header(picture_of(candidate.encoded), self.pictures.image)
        except Bad as bad:
            return candidate.drop(bad)
        return nearest(self.buckets, shown.width, shown.height)

    def full(self, line: list[Held], size: Size) -> tuple[Sample, ...]:
        """The batch, where the good ones of a bucket are as many; else nothing."""
        if len(line) < self.batch_size:
            return ()
        for one in line:
            if one.made is None:
                self.decode(one, size)
                self.in_a_row = self.in_a_row + 1 if isinstance(one.made, Drop) else 0
                if isinstance(one.made, Drop):
                    self.patience.bear(self.in_a_row, one.made)
        good = tuple(one.made for one in line if isinstance(one.made, Sample))
        return good if len(good) == self.batch_size else ()

    def decode(self, one: Held, size: Size) -> None:
        one.made = self.pictures.decode(one.candidate, self.chance(one.window, one.taken), size)

    def left(self, one: Held, size: Size) -> Drop:
        """What became of a picture whose bucket was not full in time."""
        if one.made is None:  # so that what is bad is counted as that, whenever the run goes on
            self.decode(one, size)
        if isinstance(one.made, Drop):
            return one.made
        told = f"fewer than {self.batch_size} of its proportions in two windows"
        at = one.candidate
        return Drop(at.source, f"{FILTERED}bucket", at.shard, at.encoded.key, told)

    def expect_batches(self, quiet: int) -> None:
        """Raises ValueError after two whole windows that filled no bucket."""
        if quiet >= 2:
            raise ValueError(
                f"data source {self.source.name!r}: {len(self.buckets)} buckets of batches of "
                f"{self.batch_size}, and not one was full after two windows of {self.window} "
                "samples. Raise data.window, or lower batch_size or data.buckets.max_aspect"
            )

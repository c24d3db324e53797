"""What tests ask of a stream's batches, and a stream as a DataLoader's worker would see it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from salon.data.lane import LaneCursor
from salon.data.stream import TrainStream
from salon.types import Batch


def keys(batches: Any, number: int) -> list[list[str]]:
    return [batch.keys for batch in itertools.islice(batches, number)]


def cursors(batches: Sequence[Batch]) -> dict[int, LaneCursor]:
    """Where the lanes stand after these batches."""
    return {batch.trace.lane: batch.trace.cursor for batch in batches}


def drops(batches: Sequence[Batch]) -> dict[str, int]:
    """How many of each reason."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts.update({reason: n for (_, reason), n in batch.trace.tally.dropped.items()})
    return dict(counts)


def as_worker(dataset: TrainStream, number: int, workers: int) -> Iterator[Batch]:
    info = SimpleNamespace(id=number, num_workers=workers)
    with mock.patch("salon.data.stream.get_worker_info", return_value=info):
        batches = iter(dataset)
        first = next(batches)  # it asks who it is when it begins
    return itertools.chain([first], batches)

"""Where a run stands in its data: what it was trained on, and where each lane goes on."""

from __future__ import annotations

import logging
from typing import Any

import torch

from salon.data.lane import Cursor, LaneCursor, Place
from salon.data.reasons import FILTERED
from salon.data.stream import Trace
from salon.data.tally import Patience, Tally

log = logging.getLogger(__name__)


class Position:
    """Of one rank; `state` tells what is true of all."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.tally = Tally()  # of what was trained on, on this rank
        self.cursors: dict[int, LaneCursor] = {}  # of the lanes that this rank has walked
        self.start = 0  # batches of all ranks that were done when this process began
        self._before = 0  # batches of each rank that were done then
        self._pending: Trace | None = None  # of the batch that is being trained on

    def units(self, processed: int, ranks: int) -> int:
        """Batches of all ranks that are done, where `processed` of each rank are."""
        return self.start + (processed - self._before) * ranks

    def begins(self, trace: Trace) -> None:
        """A batch is about to be trained on, so the one before it is done.

        Raises ValueError where too much of what was read is bad.
        """
        before, self._pending = self._pending, trace
        if before is not None:
            self._done(before)

    def settle(self, units: int) -> None:
        """Counts the last batch too, where it is done."""
        before = self._pending
        if before is not None and before.unit < units:
            self._pending = None
            self._done(before)

    def _done(self, trace: Trace) -> None:
        self.cursors[trace.lane] = trace.cursor
        new = set(trace.tally.dropped) - set(self.tally.dropped)
        self.tally.merge(trace.tally)
        for source, reason in sorted(new):
            if not reason.startswith(FILTERED):
                shown = trace.tally.examples[source, reason][0]
                log.warning("left out, %s: %s (others like it are counted)", reason, shown)
        self.tally.check(self.patience)

    def state(self, processed: int, ranks: int) -> dict[str, Any]:
        """Plain, and the same on every rank: each tells the others where its lanes stand."""
        mine = ({lane: to_plain(cursor) for lane, cursor in self.cursors.items()}, self.tally)
        everyone: list[Any] = [mine]
        if ranks > 1:
            everyone = [None] * ranks
            torch.distributed.all_gather_object(everyone, mine)
        cursors: dict[int, Any] = {}
        tally = Tally()
        for theirs, counted in everyone:
            # A lane that two ranks have walked (the one before resuming) stands where it is later.
            for lane, cursor in theirs.items():
                cursors[lane] = max(cursor, cursors.get(lane, cursor))
            tally.merge(counted)
        return {
            "batches": processed,
            "units": self.units(processed, ranks),
            "cursors": [[lane, cursors[lane]] for lane in sorted(cursors)],
            "report": tally.report(),
        }

    def load(self, state: dict[str, Any], *, first: bool) -> None:
        self._before, self.start = state["batches"], state["units"]
        self.cursors = {lane: from_plain(cursor) for lane, cursor in state["cursors"]}
        # Rank 0 goes on with the counts of all; the others begin anew, so that a sum stays a sum.
        if first:
            self.tally = Tally.of(state["report"])


def to_plain(cursor: LaneCursor) -> list[Any]:
    """Lists of numbers, which a safe checkpoint can hold; later ones compare as greater."""
    return [
        cursor.drawn,
        [[list(c.place), c.window, c.taken, *c.waiting] for c in cursor.sources],
    ]


def from_plain(plain: list[Any]) -> LaneCursor:
    drawn, sources = plain
    return LaneCursor(
        drawn,
        tuple(Cursor(Place(*at), n, taken, tuple(waiting)) for at, n, taken, *waiting in sources),
    )

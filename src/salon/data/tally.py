"""What became of every sample: how many were used, what was left out and why, and when to stop.

Counts are kept by source, where a run mixes several. They travel with the batches, so a count is
of what was trained on, and not of what lies ready in some worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from salon.data.reasons import ASKED, BAD, FILTERED, UNREACHABLE
from salon.data.settings import number

EXAMPLES = 5  # of each reason, the first ones


class Drop(NamedTuple):
    """A sample that was not used, or what was lost of a shard from a defect on."""

    source: str
    reason: str  # in `salon.data.reasons.BAD`, or "filter:NAME"
    shard: str
    key: str | None  # None: of the shard itself
    detail: str
    samples: int = 1  # that it stands for, where a broken shard's own list tells

    @property
    def place(self) -> str:
        return self.shard if self.key is None else f"{self.shard}:{self.key}"


class Patience(NamedTuple):
    """When bad samples are too many; one alone never is."""

    max_bad_fraction: float  # of what was read, without what a filter left out
    min_seen: int  # samples before a fraction says something
    max_consecutive: int  # bad ones in a row
    max_lost_shards: int  # shards in a row that gave nothing
    unreachable: str  # a shard that cannot be fetched: "skip" it, or "stop"

    def bear_shard(self, in_a_row: int, last: Drop) -> None:
        """Raises ValueError where a shard broke that must not, or too many in a row did."""
        if last.reason in UNREACHABLE and self.unreachable == "stop":
            raise ValueError(
                f"{last.shard} of source {last.source!r} cannot be fetched: {last.reason}: "
                f"{last.detail}. When it can be, go on from the last checkpoint with the same "
                "sequence: resume=RUN_FOLDER; data.errors.unreachable=skip goes on without it"
            )
        if in_a_row >= self.max_lost_shards:
            raise ValueError(
                f"{in_a_row:,} shards in a row of source {last.source!r} gave nothing, the last "
                f"{last.shard}: {last.reason}: {last.detail}. Is the place they lie in reachable? "
                "data.errors.max_lost_shards=N allows more"
            )

    def bear(self, in_a_row: int, last: Drop) -> None:
        """Raises ValueError where so many bad samples in a row are too many."""
        if in_a_row >= self.max_consecutive:
            raise ValueError(
                f"{in_a_row:,} bad samples in a row in source {last.source!r}, the last "
                f"{last.place}: {last.reason}: {last.detail}. Leave these shards out, or mend what "
                "they are made of; data.errors.max_consecutive=N allows more"
            )


def make_patience(
    *,
    max_bad_fraction: float,
    min_seen: int,
    max_consecutive: int,
    max_lost_shards: int,
    unreachable: str,
) -> Patience:
    """Raises ValueError that names data.errors and the setting."""
    patience = Patience(max_bad_fraction, min_seen, max_consecutive, max_lost_shards, unreachable)
    number("data.errors.max_bad_fraction", patience.max_bad_fraction, least=0, most=1)
    for name in ("min_seen", "max_consecutive", "max_lost_shards"):
        number(f"data.errors.{name}", getattr(patience, name), least=1, whole=True)
    if patience.unreachable not in ("skip", "stop"):
        raise ValueError(
            f"data.errors.unreachable={patience.unreachable!r}: expected 'skip' or 'stop'"
        )
    return patience


class Tally:
    def __init__(self) -> None:
        self.used: Counter[str] = Counter()  # by source
        self.dropped: Counter[tuple[str, str]] = Counter()  # by source and reason
        self.examples: dict[tuple[str, str], list[str]] = {}

    def add(self, used: dict[str, int], drops: Iterable[Drop]) -> None:
        self.used.update(used)
        for drop in drops:
            at = (drop.source, drop.reason)
            self.dropped[at] += drop.samples
            shown = self.examples.setdefault(at, [])
            if len(shown) < EXAMPLES:
                shown.append(f"{drop.place}: {drop.detail}")

    def merge(self, other: Tally) -> None:
        self.used.update(other.used)
        self.dropped.update(other.dropped)
        for at, shown in other.examples.items():
            self.examples[at] = [*self.examples.get(at, []), *shown][:EXAMPLES]

    # -- what it comes to ----------------------------------------------------------------------

    def total(self, reasons: Iterable[str]) -> int:
        wanted = set(reasons)
        return sum(n for (_, reason), n in self.dropped.items() if reason in wanted)

    @property
    def bad(self) -> int:
        return self.total(BAD)

    @property
    def filtered(self) -> int:
        return sum(n for (_, reason), n in self.dropped.items() if reason.startswith(FILTERED))

    @property
    def bad_fraction(self) -> float:
        seen = self.used.total() + self.bad
        return self.bad / seen if seen else 0.0

    def check(self, patience: Patience) -> None:
        """Raises ValueError where more is bad than `patience` allows."""
        seen = self.used.total() + self.bad
        if seen < patience.min_seen or self.bad_fraction <= patience.max_bad_fraction:
            return
        counts = Counter({reason: self.total([reason]) for _, reason in self.dropped})
        worst = max(BAD, key=lambda reason: counts[reason])
        first = next(shown[0] for (_, reason), shown in self.examples.items() if reason == worst)
        raise ValueError(
            f"{self.bad:,} of {seen:,} samples are bad ({self.bad_fraction:.1%}), more than "
            f"data.errors.max_bad_fraction={patience.max_bad_fraction} allows. Most often it is "
            f"{worst} ({BAD[worst]}), as in {first}. See all of it: python -m salon.data check "
            "SHARDS; or allow more: data.errors.max_bad_fraction=SHARE"
        )

    def metrics(self) -> dict[str, float]:
        """For a logger: shares of what was read, and counts by reason."""
        seen = self.used.total() + self.bad
        told: dict[str, float] = {
            "data/bad_fraction": self.bad_fraction,
            "data/filtered_fraction": self.filtered / max(1, seen + self.filtered),
        }
        for (_, reason), n in self.dropped.items():
            kind, name = ("filtered", reason[len(FILTERED) :]) if ":" in reason else ("bad", reason)
            told[f"data/{kind}/{name}"] = told.get(f"data/{kind}/{name}", 0) + n
        if len(self.used) > 1:  # how a mixture came out
            for source, n in self.used.items():
                told[f"data/share/{source}"] = n / self.used.total()
        return told

    # -- written down --------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Plain: for a json file, and for a checkpoint."""
        sources = sorted({*self.used, *(source for source, _ in self.dropped)})
        return {
            "used": self.used.total(),
            "bad": self.bad,
            "filtered": self.filtered,
            "bad_fraction": self.bad_fraction,
            "sources": {
                source: {
                    "used": self.used[source],
                    "dropped": {
                        reason: {
                            "count": n,
                            "meaning": {**BAD, **ASKED}.get(reason, "asked for in data.filters"),
                            "examples": self.examples[at],
                        }
                        for at, n in self.dropped.most_common()
                        for of, reason in [at]
                        if of == source
                    },
                }
                for source in sources
            },
        }

    @classmethod
    def of(cls, report: dict[str, Any]) -> Tally:
        """What `report` wrote down."""
        tally = cls()
        for source, told in report["sources"].items():
            tally.used[source] += told["used"]
            for reason, each in told["dropped"].items():
                tally.dropped[source, reason] = each["count"]
                tally.examples[source, reason] = list(each["examples"])
        return tally

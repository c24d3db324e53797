"""`python -m salon.data check`: shards read without training -> a table, a report, a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from salon import files
from salon.data import image
from salon.data.module import ShardData
from salon.data.reader import Candidate, Reader, picture_of
from salon.data.reasons import BAD, Bad
from salon.data.tally import Drop, Tally


def check(data: ShardData, *, split: str, decode: bool, out: Path) -> bool:
    """Whether no more is bad than `data.errors.max_bad_fraction` allows.

    Raises ValueError where the split names no shard.
    """
    tally = Tally()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[told]}"), TimeRemainingColumn()) as progress:
        sources = data.sources(split)
        total = sum(len(source.shards) for source in sources)
        task = progress.add_task("shards", total=total, told="")
        for source in sources:
            for shard in source.shards:
                read(data.reader, shard, source.name, tally, decode=decode)
                counts = (tally.used.total(), tally.bad, tally.filtered)
                told = "{:,} good, {:,} bad, {:,} filtered".format(*counts)
                progress.update(task, advance=1, told=told)
    files.write(out, json.dumps(tally.report(), indent=2, ensure_ascii=False))
    console = Console()
    console.print(table(tally, [source.name for source in sources]))
    allowed = data.patience.max_bad_fraction
    console.print(
        f"{tally.bad_fraction:.2%} bad; data.errors.max_bad_fraction allows {allowed:.2%}. "
        f"Report: {out}",
        highlight=False,
        soft_wrap=True,
    )
    return tally.used.total() > 0 and tally.bad_fraction <= allowed


def read(reader: Reader, shard: str, source: str, tally: Tally, *, decode: bool) -> None:
    """Counts one shard's samples."""
    chance = np.random.default_rng(0)
    for item in reader.candidates(shard, source):
        drop = item if isinstance(item, Drop) else _tried(reader, item, chance, decode=decode)
        tally.add({source: 1} if drop is None else {}, [] if drop is None else [drop])


def _tried(
    reader: Reader, candidate: Candidate, chance: np.random.Generator, *, decode: bool
) -> Drop | None:
    if decode:
        made = reader.decode(candidate, chance)
        return made if isinstance(made, Drop) else None
    try:
        reader.caption_of(candidate, chance)
        image.header(picture_of(candidate.encoded), reader.image)
    except Bad as bad:
        return candidate.drop(bad)
    return None


def table(tally: Tally, sources: Sequence[str]) -> Table:
    """By source and reason, the most frequent first."""
    made = Table("source", "what became of it", "samples", "share", "for instance")
    for source in sources:
        used = tally.used[source]
        rows = [(reason, n) for (of, reason), n in tally.dropped.most_common() if of == source]
        total = max(1, used + sum(n for _, n in rows))
        made.add_row(source, "good", f"{used:,}", f"{used / total:.1%}", "")
        for reason, n in rows:
            kind = "bad: " if reason in BAD else ""
            example = tally.examples[source, reason][0]
            made.add_row(source, f"{kind}{reason}", f"{n:,}", f"{n / total:.1%}", example)
    return made

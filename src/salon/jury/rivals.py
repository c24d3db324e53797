"""Pair by pair: which of two models obeys more prompts, over the same prompts and seeds of drawing.

A prompt that is hard for one is hard for the other, so differences are taken prompt by prompt and
prompts are what is resampled (`salon.metrics.intervals.paired_difference`); a model's score of a
prompt is the mean over its training seeds. The p are Holm's (1979), for as many pairs as there are.
That says how sure the difference is for these trained networks; how much another training would
change, the seeds in the ranking tell.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from salon.jury.markup import Html, el
from salon.jury.report import CONFIDENCE, Report, Row
from salon.jury.sections import scroll
from salon.metrics.intervals import paired_difference

DRAWS, SEED = 10_000, 0


class Pair(NamedTuple):
    one: str
    other: str
    value: float  # the first's share of obeyed prompts less the second's
    low: float
    high: float
    p: float  # Holm's


def scores(row: Row, split: str) -> Tensor | None:
    """(P, K) of P prompts and K seeds; None where a record does not tell."""
    told = [(record.hits or {}).get(split) for record in row.finished]
    if not told or any(one is None for one in told) or len({len(one or ()) for one in told}) > 1:
        return None
    return torch.tensor(told, dtype=torch.float64).T


def pairs(report: Report, split: str) -> list[Pair]:
    """Of all models that tell, the better of the ranking first."""
    known = {row.name: scores(row, split) for row in report.models}
    found = []
    for (one, first), (other, second) in combinations(known.items(), 2):
        if first is None or second is None or len(first) != len(second):
            continue
        told = paired_difference(first, second, confidence=CONFIDENCE, draws=DRAWS, seed=SEED)
        found.append(Pair(one, other, *told))
    return _corrected(found)


def _corrected(found: list[Pair]) -> list[Pair]:
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    worst = 0.0
    corrected = list(found)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, found[i].p * (len(found) - rank)))
        corrected[i] = found[i]._replace(p=worst)
    return corrected


def section(report: Report) -> Html | None:
    for split in report.splits:
        if told := pairs(report, split):
            return _table(told, split)
    return None


def _table(told: list[Pair], split: str) -> Html:
    titles = ("", f"difference, {split}", "95 %", "p (Holm)")
    heads = el("tr", [el("th", title, scope="col") for title in titles])
    rows = [
        el(
            "tr",
            el("th", f"{pair.one} − {pair.other}", scope="row"),
            el("td", f"{pair.value:+.3f}"),
            el("td", f"[{pair.low:+.3f}, {pair.high:+.3f}]"),
            el("td", "< 0.01" if pair.p < 0.01 else f"{pair.p:.2f}"),
        )
        for pair in told
    ]
    return scroll("Pair by pair", el("table", el("thead", heads), el("tbody", rows)))

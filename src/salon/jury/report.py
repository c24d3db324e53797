"""Records to tables: what may stand side by side, means over seeds, leaderboard.csv and .md.

The seeds of training are what a comparison is uncertain about, so where there are two or more the
interval is Student's t over their means; with a single one it is that record's own, which knows
nothing of another training.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from salon.jury.record import FAMILIES, Cost, Number, Record, Scalar
from salon.jury.units import digits
from salon.metrics.intervals import t_interval

ABSENT = "(absent)"
CHECKED = ("family", "mark")
CONFIDENCE = 0.95
AXES = {"images_seen": "images seen", "flops": "training FLOPs", "seconds": "training seconds"}


class Metric(NamedTuple):
    title: str
    better: str | None = None  # "more" or "less"
    share: bool = False  # between 0 and 1
    told: str = ""


# In the order of the leaderboard. What a record tells beyond these stands in the full tables.
METRICS = {
    "prompt_accuracy": Metric(
        "prompt accuracy", "more", True, "share of pictures that obey the prompt in everything"
    ),
    "malformed": Metric("malformed", "less", True, "share of pictures with an unreadable object"),
    "fd": Metric("FD", "less", False, "Fréchet distance to real pictures"),
    "fd_inf": Metric("FD∞", "less", False, "Fréchet distance extrapolated to endless pictures"),
    "fd_clip": Metric("FD (CLIP)", "less", False, "Fréchet distance in the text tower's features"),
    "fid": Metric("FID", "less", False, "Fréchet distance in Inception's features"),
    "kid": Metric("KID", "less", False, "kernel distance, unbiased in the number of pictures"),
    "density": Metric("density", "more", False, "how closely pictures crowd around real ones"),
    "coverage": Metric("coverage", "more", True, "share of real pictures with a drawn neighbour"),
    "vendi": Metric("Vendi", "more", False, "effective number of different pictures"),
    "clip_score": Metric("CLIP score", "more", False, "100 x cosine of picture and caption"),
    "r_precision": Metric("R-precision", "more", True, "share whose caption is found among 100"),
    "copies": Metric("copies", "less", True, "share that copies a training picture"),
}


# Of the accuracy by parts, those whose name alone does not tell.
PARTS = {
    "all/one": "all, one object",
    "all/two": "all, two objects",
    "relation/given_both": "relation, where both objects are right",
}


def metric_of(name: str) -> Metric:
    """An attribute's share, such as prompt_accuracy/shape, is a share too."""
    if name.startswith("prompt_accuracy"):
        plain = name.replace("prompt_accuracy/", "")
        return METRICS["prompt_accuracy"]._replace(
            title=PARTS.get(plain, plain.replace("_", " ")), told=""
        )
    return METRICS.get(name, Metric(name))


class Row(NamedTuple):
    """The seeds of one label at one checkpoint."""

    name: str
    label: str
    family: str
    checkpoint: str
    mark: str | None
    records: list[Record]

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.failed is None]


class Summary(NamedTuple):
    mean: float
    low: float | None
    high: float | None
    seeds: list[tuple[int | None, Number]]  # every one of them


class Report(NamedTuple):
    protocol: dict[str, Scalar]
    rows: list[Row]  # the models first, then the baselines; each by the first metric
    splits: list[str]

    @property
    def models(self) -> list[Row]:
        return [row for row in self.rows if row.family != "baseline"]

    @property
    def baselines(self) -> list[Row]:
        return [row for row in self.rows if row.family == "baseline"]

    def marked(self, mark: str) -> Row | None:
        return next((row for row in self.rows if row.mark == mark), None)

    def names(self, split: str) -> list[str]:
        """Every metric of a split, those of METRICS first and in their order."""
        found = dict.fromkeys(
            name
            for row in self.rows
            for record in row.records
            for name in record.metrics.get(split, {})
        )
        return [name for name in METRICS if name in found] + [n for n in found if n not in METRICS]

    def columns(self) -> list[tuple[str, str]]:
        """(split, metric) of the leaderboard: all of the first split, the first of the others."""
        if not self.splits:
            return []
        first, *others = self.splits
        names = [name for name in self.names(first) if name in METRICS]
        lead = [(split, names[0]) for split in others if names and names[0] in self.names(split)]
        return [(first, name) for name in names[:1]] + lead + [(first, name) for name in names[1:]]


def collect(records: Sequence[Record]) -> Report:
    """Raises ValueError for records that may not stand in one table."""
    if not records:
        raise ValueError("there is no record: a report needs at least one")
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        same(records[0], record, "protocol", records[0].protocol, record.protocol)
        grouped.setdefault((record.label, record.checkpoint), []).append(record)
    for group in grouped.values():
        seeds = [record.seed for record in group]
        twice = next((seed for seed in seeds if seeds.count(seed) > 1), ABSENT)
        if twice != ABSENT:
            raise ValueError(f"{name_of(group[0])}: seed {twice} is there twice")
        for record in group:
            same(group[0], record, "settings", group[0].settings, record.settings)
            told = [{key: getattr(one, key) for key in CHECKED} for one in (group[0], record)]
            same(group[0], record, "the label", *told)
    labels = [label for label, _ in grouped]
    rows = [
        Row(
            label if labels.count(label) == 1 else f"{label} ({checkpoint})",
            label,
            group[0].family,
            checkpoint,
            group[0].mark,
            sorted(group, key=lambda r: -1 if r.seed is None else r.seed),
        )
        for (label, checkpoint), group in grouped.items()
    ]
    splits = list(dict.fromkeys(split for record in records for split in record.metrics))
    report = Report(dict(records[0].protocol), rows, splits)
    lead = report.columns()[:1]
    return report._replace(rows=sorted(rows, key=lambda row: _rank(row, lead)))


def _rank(row: Row, lead: list[tuple[str, str]]) -> tuple[bool, float, int, str]:
    shown = summary(row, *lead[0]) if lead else None
    sign = 1 if lead and metric_of(lead[0][1]).better == "less" else -1
    worth = math.inf if shown is None else sign * shown.mean
    return row.family == "baseline", worth, FAMILIES.index(row.family), row.name


def same(
    one: Record, other: Record, where: str, left: dict[str, Scalar], right: dict[str, Scalar]
) -> None:
    for key in [*left, *(key for key in right if key not in left)]:
        a, b = left.get(key, ABSENT), right.get(key, ABSENT)
        if a != b or isinstance(a, bool) != isinstance(b, bool):
            raise ValueError(
                f"{where}: {key} is {a!r} in {name_of(one)} and {b!r} in {name_of(other)}; "
                "numbers made differently may not stand in one table. Judge both the same way, or "
                "write two reports"
            )


def name_of(record: Record) -> str:
    parts = [record.label, record.checkpoint, "" if record.seed is None else f"seed {record.seed}"]
    return ", ".join(part for part in parts if part)


def summary(row: Row, split: str, name: str) -> Summary | None:
    seeds = [
        (record.seed, record.metrics[split][name])
        for record in row.finished
        if name in record.metrics.get(split, {})
    ]
    return summarize(name, seeds)


def summarize(name: str, seeds: list[tuple[int | None, Number]]) -> Summary | None:
    if not seeds:
        return None
    if len(seeds) == 1:
        [(_, only)] = seeds
        return Summary(only.value, only.low, only.high, seeds)
    values = [number.value for _, number in seeds]
    mean, low, high = t_interval(values, confidence=CONFIDENCE)
    if metric_of(name).share:
        low, high = max(0.0, low), min(1.0, high)
    return Summary(mean, low, high, seeds)


def show(name: str, value: float) -> str:
    return f"{value:.3f}" if metric_of(name).share else digits(value)


def show_summary(name: str, told: Summary | None) -> str:
    if told is None:
        return "–"
    return show(name, told.mean) + (f" {interval(name, told)}" if told.low is not None else "")


def interval(name: str, told: Summary) -> str:
    if told.low is None or told.high is None:
        return ""
    return f"[{show(name, told.low)}, {show(name, told.high)}]"


def heading(report: Report, split: str, name: str) -> str:
    title = METRICS[name].title if name in METRICS else metric_of(name).title
    return title if len(report.splits) == 1 else f"{title}, {split}"


def leaderboard_csv(records: Sequence[Record]) -> str:
    """A row for each record, a column for each number and its bounds; empty: not measured."""
    metrics = dict.fromkeys(
        (split, name) for r in records for split, told in r.metrics.items() for name in told
    )
    settings = dict.fromkeys(key for record in records for key in record.settings)
    lines = []
    for record in records:
        line: dict[str, object] = {
            "label": record.label,
            "family": record.family,
            "checkpoint": record.checkpoint,
            "seed": record.seed,
            "failed": record.failed,
        }
        for split, name in metrics:
            number = record.metrics.get(split, {}).get(name)
            for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("n", "_n")):
                line[f"{split}/{name}{suffix}"] = None if number is None else getattr(number, part)
        line |= _cost_columns(record.cost or Cost())
        line |= {f"settings/{key}": record.settings.get(key) for key in settings}
        lines.append(line)
    columns = list(dict.fromkeys(column for line in lines for column in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _cost_columns(cost: Cost) -> dict[str, object]:
    line: dict[str, object] = {}
    for name, value in cost._asdict().items():
        if isinstance(value, dict):
            line |= {f"cost/{name}_{part}": number for part, number in value.items()}
            line[f"cost/{name}"] = sum(value.values()) if value else None
        else:
            line[f"cost/{name}"] = value
    return line


def leaderboard_md(report: Report) -> str:
    """Means over seeds, and the interval, for a README."""
    columns = report.columns()
    arrows = {"more": " ↑", "less": " ↓", None: ""}
    heads = ["model", "family", "seeds"] + [
        heading(report, split, name) + arrows[metric_of(name).better] for split, name in columns
    ]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for row in report.rows:
        cells = [show_summary(name, summary(row, split, name)) for split, name in columns]
        lines.append([row.name, row.family, seeds_of(row), *cells])
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, safe)
    return text


def seeds_of(row: Row) -> str:
    if row.family == "baseline":
        return "–"
    done, begun = len(row.finished), len(row.records)
    return str(done) if done == begun else f"{done} of {begun}"


SLACK = 0.01  # runs of equal seconds end between two batches, and not at the same moment


class Budget(NamedTuple):
    axis: str
    spent: float  # as much as every one of the rows has spent
    values: dict[str, Summary]  # by the row's name, at its last validation within the budget


def equal_budgets(report: Report, name: str) -> list[Budget]:
    """What each model shows once it has spent what the thriftiest spent, axis by axis."""
    found = []
    for axis in AXES:
        curves: dict[str, dict[int | None, list[tuple[float, float]]]] = {}
        for row in report.models:
            for record in row.finished:
                points = [
                    (getattr(p, axis), p.metrics[name])
                    for p in record.curve
                    if name in p.metrics and getattr(p, axis) is not None
                ]
                if points:
                    curves.setdefault(row.name, {})[record.seed] = points
        if len(curves) < 2:
            continue
        spent = min(points[-1][0] for seeds in curves.values() for points in seeds.values())
        values = {}
        for who, seeds in curves.items():
            limit = spent * (1 + SLACK)
            within = {s: [v for x, v in points if x <= limit] for s, points in seeds.items()}
            told = summarize(name, [(seed, Number(v[-1])) for seed, v in within.items() if v])
            if told is not None:
                values[who] = told
        found.append(Budget(axis, spent, values))
    return found

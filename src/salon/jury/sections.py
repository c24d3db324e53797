"""The sections of the report's page that show pictures and attributes; page.py hangs them.

A section takes the report and returns its body, or None where no record carries what it shows.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

from salon.jury import charts
from salon.jury.charts import Bar, Look
from salon.jury.markup import Child, Html, el
from salon.jury.record import Number, Record
from salon.jury.report import Report, Row, summary

PREFIX = "prompt_accuracy/"


class Cell(NamedTuple):
    shown: Child
    value: float | str | None = None  # what a column is sorted by


def looks(report: Report) -> dict[str, Look]:
    """By the row's name; in the order of names, so that a new ranking repaints no model."""
    names = [
        row.name
        for rows in (report.models, report.baselines)
        for row in sorted(rows, key=lambda row: row.name)
    ]
    families = {row.name: row.family for row in report.rows}
    return {name: Look(families[name], i) for i, name in enumerate(names)}


def scroll(label: str, *children: Child) -> Html:
    """A wide table scrolls in its own box, by keyboard too."""
    return el("div", *children, class_="scroll", role="region", aria_label=label, tabindex="0")


def breakable(name: str) -> list[Child]:
    """May be broken after an underscore, where the page is narrow."""
    first, *rest = name.split("_")
    return [first, *(part for word in rest for part in ("_", el("wbr"), word))]


def run_name(row: Row, record: Record) -> str:
    return row.name if record.seed is None else f"{row.name}, seed {record.seed}"


def head(row: Row, look: Look, detail: str) -> Html:
    words = el(
        "span", el("span", breakable(row.name), class_="name"), el("span", detail, class_="kind")
    )
    return el("span", charts.swatch(look), words, class_="head")


def legend(report: Report) -> Html:
    seen = looks(report)
    return el(
        "ul",
        [el("li", charts.swatch(seen[row.name]), row.name) for row in report.models],
        class_="legend",
    )


def image(png: bytes, alt: str) -> Html:
    data = base64.b64encode(png).decode()
    return el("img", src=f"data:image/png;base64,{data}", alt=alt, width=96, height=96)


def switch(title: str, name: str, panels: list[tuple[str, Html]]) -> Html:
    """Radio buttons that show one panel at a time, without a script."""
    parts: list[Child] = []
    for i, (label, _) in enumerate(panels):
        id_ = f"{name}-{i}"
        parts.append(el("input", type="radio", name=name, id=id_, checked=i == 0))
        parts.append(el("label", label, for_=id_))
    parts += [el("div", panel, class_="panel") for _, panel in panels]
    return el("fieldset", el("legend", title), parts, class_="switch")


# ---- the wall


def wall(report: Report) -> Html | None:
    """A row of pictures for each model, from its first seed that has any."""
    seen = looks(report)
    rows = []
    for row in [*report.baselines, *report.models]:
        record = next((record for record in row.records if record.wall), None)
        if record is not None:
            rows.append((row, record))
    if not rows:
        return None
    asked = list(dict.fromkeys((p.caption, p.seed) for _, record in rows for p in record.wall))
    body = []
    for row, record in rows:
        drawn = {(p.caption, p.seed): p for p in record.wall}
        detail = row.family if record.seed is None else f"{row.family}, seed {record.seed}"
        cells = [
            el("td", image(drawn[one].png, f"{row.name}: {one[0]}") if one in drawn else "–")
            for one in asked
        ]
        body.append(el("tr", el("th", head(row, seen[row.name], detail), scope="row"), cells))
    heads = [el("th", caption, scope="col") for caption, _ in asked]
    table = el(
        "table",
        el("thead", el("tr", el("th", "model", scope="col"), heads)),
        el("tbody", body),
        class_="wall",
    )
    return scroll("The wall of pictures", table)


# ---- attributes


def attributes(report: Report) -> Html | None:
    panels = []
    for split in report.splits:
        names = [name for name in report.names(split) if name.startswith(PREFIX)]
        drawn = [_attribute(report, split, name) for name in names]
        if drawn:
            panels.append((split, el("div", drawn, class_="plates small")))
    return switch("Prompts of the split", "attributes", panels) if panels else None


def _attribute(report: Report, split: str, name: str) -> Html:
    seen = looks(report)
    rows = []
    for row in report.models:
        told = summary(row, split, name)
        if told is not None:
            rows.append(Bar(row.name, seen[row.name], Number(told.mean, told.low, told.high)))
    lines = {}
    for mark in ("chance", "ceiling"):
        marked = report.marked(mark)
        told = summary(marked, split, name) if marked is not None else None
        lines[mark] = None if told is None else told.mean
    title = name.removeprefix(PREFIX)
    chart = charts.bars(rows, title=f"{title}, {split}", **lines)
    return el("figure", el("h3", title), chart)


# ---- copies and open prompts


def copies(report: Report) -> Html | None:
    runs = [(run_name(row, record), record) for row in report.models for record in row.records]
    looked = [(who, record) for who, record in runs if record.copies is not None]
    if not looked:
        return None
    figures = []
    for who, record in looked:
        for copy in record.copies or []:
            near = "." if copy.distance is None else f", distance {copy.distance:.3g}."
            figures.append(
                el(
                    "figure",
                    el(
                        "div",
                        image(copy.drawn, f"drawn by {who}: {copy.caption}"),
                        image(copy.training, f"training picture nearest to it: {copy.caption}"),
                        class_="pair",
                    ),
                    el("figcaption", f"“{copy.caption}” {who}{near}"),
                )
            )
    number = f"{len(looked)} run{'s' if len(looked) != 1 else ''}"
    if not figures:
        return el("p", f"Looked for in {number}; no copy was found.")
    told = f"Looked for in {number}. Left the picture drawn, right the training picture."
    return el("div", el("p", told, class_="note"), el("div", figures, class_="pairs"))


def bias(report: Report) -> Html | None:
    """Shares of an attribute's values where the prompt leaves it open, a table a prompt."""
    asked = dict.fromkeys(
        (one.prompt, one.attribute) for row in report.models for r in row.records for one in r.bias
    )
    return el("div", [_open(report, *one) for one in asked], class_="plates") if asked else None


def _open(report: Report, prompt: str, attribute: str) -> Html:
    seen, body, training = looks(report), [], {}
    for row in report.models:
        found = [
            o for r in row.records for o in r.bias if (o.prompt, o.attribute) == (prompt, attribute)
        ]
        if found:
            drawn = _shares([one.drawn for one in found])
            training = _shares([one.training for one in found])
            body.append((row, drawn))
    values = list(dict.fromkeys([*training, *(value for _, drawn in body for value in drawn)]))
    lines = []
    for row, drawn in body:
        far = sum(abs(drawn.get(v, 0.0) - training.get(v, 0.0)) for v in values) / 2
        cells = [
            el(
                "td",
                f"{drawn.get(v, 0.0):.0%}",
                charts.share_bar(seen[row.name], drawn.get(v, 0.0), training.get(v, 0.0)),
            )
            for v in values
        ]
        lines.append(
            el("tr", el("th", breakable(row.name), scope="row"), cells, el("td", f"{far:.2f}"))
        )
    shares = [el("td", f"{training.get(v, 0.0):.0%}") for v in values]
    lines.append(el("tr", el("th", "training", scope="row"), shares, el("td", "–")))
    heads = [el("th", word, scope="col") for word in ("model", *values, "distance")]
    return el(
        "figure",
        el("h3", f"“{prompt}”: which {attribute}?"),
        scroll(
            f"{attribute} for {prompt}",
            el("table", el("thead", el("tr", heads)), el("tbody", lines)),
        ),
    )


def _shares(counts: list[dict[str, int]]) -> dict[str, float]:
    """Pooled over seeds."""
    total = sum(sum(one.values()) for one in counts)
    values = dict.fromkeys(value for one in counts for value in one)
    return {v: sum(one.get(v, 0) for one in counts) / max(total, 1) for v in values}

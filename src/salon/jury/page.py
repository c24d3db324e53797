"""The report as one HTML file that fetches nothing: it opens from a disk, in light and dark.

The content security policy admits only this page's own script and style, by their hashes, so that
no caption could bring another even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from salon.jury import rivals, sections, tables, trends
from salon.jury.markup import Child, Html, el, head
from salon.jury.record import Record
from salon.jury.report import Report, collect, leaderboard_csv, leaderboard_md
from salon.jury.sections import breakable, scroll
from salon.jury.style import CSS, JS
from salon.jury.units import count


class Section(NamedTuple):
    id: str
    title: str
    told: str  # what the section shows
    body: Html | None
    missing: str  # the line that stands where there is no body


def files(records: Sequence[Record], *, title: str, command: str) -> dict[str, str]:
    """What a report consists of, by file name."""
    report = collect(records)
    return {
        "leaderboard.csv": leaderboard_csv(records),
        "leaderboard.md": leaderboard_md(report),
        "index.html": page(report, title=title, command=command),
    }


def page(report: Report, *, title: str, command: str) -> str:
    hung = [*_sections(report), _protocol(report, command)]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(CSS)}; script-src {_hash(JS)}; "
        "base-uri 'none'; form-action 'none'"
    )
    top = head(title, css=CSS, policy=policy)
    body = el(
        "body",
        el("a", "To the ranking", href="#ranking", class_="skip"),
        _header(report, title, hung),
        el("main", [_section(i, one) for i, one in enumerate(hung, 1)]),
        el("footer", "Written by Salon. Beside this page: leaderboard.csv, leaderboard.md."),
        el("script", Html(JS)),
    )
    return f"<!doctype html>\n{el('html', top, body, lang='en')}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(report: Report, title: str, hung: list[Section]) -> Html:
    links = [
        el("li", el("a", el("span", str(i), class_="numeral"), one.title, href=f"#{one.id}"))
        for i, one in enumerate(hung, 1)
    ]
    runs = [record for row in report.models for record in row.records]
    failed = sum(record.failed is not None for record in runs)
    told = (
        f"{count(len(report.models), 'model')} in {count(len(runs), 'run')}, taught by the same "
        "pictures and the same captions, judged by one jury."
    )
    if failed:
        told += f" {count(failed, 'run')} failed, and {'is' if failed == 1 else 'are'} counted."
    return el(
        "header",
        el("p", "Salon · report of the jury", class_="over"),
        el("h1", title),
        el("p", told, class_="lead"),
        el("nav", el("ol", links), aria_label="Sections"),
    )


def _section(number: int, one: Section) -> Html:
    title = el("h2", el("span", str(number), class_="numeral"), one.title, id=f"{one.id}-title")
    if one.body is None:
        shown: Child = el("p", one.missing, class_="missing")
    else:
        shown = [el("p", one.told, class_="note"), one.body]
    return el("section", title, shown, id=one.id, aria_labelledby=f"{one.id}-title")


def _nearest(report: Report) -> str:
    if all(row.label != "nearest caption" for row in report.baselines):
        return ""
    return (
        " Nearest caption is what a search among the training pictures shows: it can obey where a "
        "composition occurs in training, and not where it is held out."
    )


def _sections(report: Report) -> list[Section]:
    return [
        Section(
            "ranking",
            "The ranking",
            "Means over training seeds; every seed is a dot, on a scale that its column shares. In "
            "brackets 95 % intervals: Student's t over seeds where there are two or more, else "
            "over the pictures of the one run. Bold: the best mean. A heading sorts."
            + _nearest(report),
            tables.ranking(report),
            "No record carries a metric: the ranking is left out.",
        ),
        Section(
            "pairs",
            "Pair by pair",
            "Difference of two models' shares of obeyed prompts, prompt by prompt: how sure it is "
            "for these networks. How much another training would change, the seeds above tell.",
            rivals.section(report),
            "No two records tell which prompts were obeyed: pairs are left out.",
        ),
        Section(
            "wall",
            "The wall",
            "The same prompts and the same seeds, a row for each model; none was chosen.",
            sections.wall(report),
            "No record carries pictures: the wall is left out.",
        ),
        Section(
            "attributes",
            "Attribute by attribute",
            "Share of pictures that obey the prompt in one respect. Dashed: chance. Solid: the "
            "ceiling. Both are rows of the ranking. Whiskers: 95 %.",
            sections.attributes(report),
            "No record carries accuracies by attribute: they are left out.",
        ),
        Section(
            "training",
            "Quality and the cost of training",
            "On validation prompts; a line for each seed, with a marker at its end.",
            trends.curves(report),
            "No record carries a curve: quality against training is left out.",
        ),
        Section(
            "drawing",
            "Quality and the cost of drawing",
            "The same checkpoints with other settings of the sampler; a marker for each setting.",
            trends.sweeps(report),
            "No record carries a sweep of settings: quality against inference is left out.",
        ),
        Section(
            "cost",
            "What it took",
            "Means over seeds. FLOPs and parameters of all parts, and of each. Energy is what was "
            "measured, never an estimate that stands in for one.",
            tables.costs(report),
            "No record carries costs: they are left out.",
        ),
        Section(
            "copies",
            "Copies of training pictures",
            "",
            sections.copies(report),
            "No run was searched for copies of training pictures: left out.",
        ),
        Section(
            "open",
            "What a prompt leaves open",
            "Bars: share of the pictures drawn. Ticks: share of the training pictures. Distance: "
            "half of the summed differences, 0 where the shares agree and 1 where they never meet.",
            sections.bias(report),
            "No record carries open prompts: the bias probe is left out.",
        ),
    ]


def _protocol(report: Report, command: str) -> Section:
    fixed = [
        el("tr", el("th", key, scope="row"), el("td", str(value)))
        for key, value in report.protocol.items()
    ]
    keys = dict.fromkeys(key for row in report.rows for key in row.records[0].settings)
    rows = []
    for row in report.rows:
        settings = row.records[0].settings
        if settings:
            cells = [
                el("td", "–" if settings.get(key) is None else str(settings[key])) for key in keys
            ]
            rows.append(el("tr", el("th", breakable(row.name), scope="row"), cells))
    shared = el(
        "table", el("caption", "Equal for every row above"), el("tbody", fixed), class_="text"
    )
    own = None
    if rows:
        heads = [el("th", word, scope="col") for word in ("model", *keys)]
        thead = el("thead", el("tr", heads))
        caption = el("caption", "The settings of each model")
        own = scroll("Settings", el("table", caption, thead, el("tbody", rows)))
    told = "What must be equal for numbers to stand in one table, and what may differ."
    made = [el("h3", "Made by"), el("pre", el("code", command))]
    body = el("div", scroll("Protocol", shared), own, made)
    return Section("protocol", "Protocol", told, body, "")

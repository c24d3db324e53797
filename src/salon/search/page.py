"""A study as files: a page that fetches nothing, and a table for other programs."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from typing import Any

from salon.jury.markup import Child, Html, el, head
from salon.jury.style import CSS
from salon.jury.units import count, digits, duration
from salon.search import charts
from salon.search.importance import FEWEST, Importance, importances
from salon.search.study import Study, Trial

COLUMNS = ("images_seen", "seconds", "folder", "error")


def header(study: Study) -> list[str]:
    return ["trial", "state", *study.keys, *study.objectives, *COLUMNS]


def rows(study: Study) -> list[list[Any]]:
    """As `header`; None for what is not known."""
    missing = (None,) * len(study.objectives)
    return [
        [
            one.number, one.state, *(one.params.get(key) for key in study.keys),
            *(one.values or missing), one.images, one.seconds, str(one.folder), one.error,
        ]
        for one in study.trials
    ]  # fmt: skip


def table_csv(study: Study) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header(study), *rows(study)])
    return text.getvalue()


def weights(study: Study, nth: int) -> list[Importance]:
    """Of complete trials: what was pruned has a value of fewer images."""
    done = [one for one in study.complete if one.values is not None]
    values = [one.values[nth] for one in done if one.values is not None]
    return importances([one.params for one in done], values)


def summary(study: Study) -> str:
    states = [one.state for one in study.trials]
    kinds = [f"{states.count(kind)} {kind}" for kind in dict.fromkeys(states)]
    return f"{count(len(states), 'trial')}: {', '.join(kinds)}" if kinds else "no trial yet"


def page(study: Study, again: Sequence[tuple[Trial, list[str]]]) -> str:
    """`again` are the best trials, with the commands that train them again."""
    plates = [
        (f"{name}, trial by trial", charts.history(study, i), HISTORY)
        for i, name in enumerate(study.objectives)
    ]
    if len(study.objectives) > 1:
        plates.insert(0, ("The front", charts.front(study), FRONT))
    else:
        plates.append(("Over images seen", charts.curves(study), CURVES))
    for i, name in enumerate(study.objectives):
        body = charts.bars(weights(study, i))
        plates.append((f"What goes with {name}", body, IMPORTANCE))
    figures = [_figure(*plate) for plate in plates]
    top = head(f"Search {study.name}", css=CSS, policy=POLICY)
    ways = zip(study.directions, study.objectives, strict=True)
    lead = f"To {', '.join(f'{way} {name}' for way, name in ways)}. {summary(study)}."
    parallel = charts.parallel(study)
    body = el(
        "body",
        el(
            "header",
            el("p", "Salon · search", class_="over"),
            el("h1", study.name),
            el("p", lead, class_="lead"),
        ),
        el(
            "main",
            _section("Best", _best(study, again)),
            _section("The search", el("div", figures, class_="plates")),
            _section("Settings side by side", _figure("Complete trials", parallel, PARALLEL)),
            _section("Every trial", el("div", _table(study), class_="scroll")),
            _section("Made by", el("pre", el("code", study.command))),
        ),
        el("footer", "Written by Salon. Beside this page: study.csv."),
    )
    return f"<!doctype html>\n{el('html', top, body, lang='en')}\n"


POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
HISTORY = "Red line: the best complete trial so far. Grey: stopped early, at fewer images."
FRONT = "Red: no other complete trial is as good in both and better in one."
CURVES = "At each validation. Grey: stopped early. Red: the best."
IMPORTANCE = (
    "Correlation ratio of each key alone with the rank of the objective, over complete trials; of "
    "numbers in three groups, with the sign of their rank correlation. Tick: 95 % of shuffled "
    "studies stay below it; grey bars do not pass it. Effects of two keys together do not show."
)
PARALLEL = "A line a trial; red: the best. Axes whose values span more than 3 to 1 are logarithmic."


def _section(title: str, *children: Child) -> Html:
    return el("section", el("h2", title), *children)


def _figure(title: str, body: Html | None, told: str) -> Html:
    missing = el("p", f"Too few trials so far (from {FEWEST} on).", class_="missing")
    return el("figure", el("h3", title), body or missing, el("figcaption", told))


def _best(study: Study, again: Sequence[tuple[Trial, list[str]]]) -> Html:
    if not again:
        return el("p", "No trial is complete yet.", class_="missing")
    parts: list[Child] = []
    for one, words in again:
        parts.append(el("h3", charts.note(study, one)))
        parts.append(el("pre", el("code", shlex.join(words))))
    return el("div", parts)


def _table(study: Study) -> Html:
    heads = el("tr", [el("th", name, scope="col") for name in header(study)])
    body = [el("tr", [el("td", cell(value)) for value in row]) for row in rows(study)]
    return el("table", el("thead", heads), el("tbody", body))


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return charts.told(value)


def shown(study: Study) -> list[list[str]]:
    """`rows` as people read them, on a terminal."""
    found = []
    for one in study.trials:
        values = [digits(value) for value in one.values or ()] or ["–"] * len(study.objectives)
        settings = [cell(one.params.get(key)) for key in study.keys]
        images = "–" if one.images is None else f"{one.images:,}"
        seconds = "–" if one.seconds is None else duration(one.seconds)
        where = one.error.splitlines()[0] if one.error else one.folder.name
        found.append([str(one.number), *settings, *values, one.state, images, seconds, where])
    return found

"""The tables of the report's page: the ranking, every number behind it, and the costs."""

from __future__ import annotations

from collections.abc import Callable

from salon.jury import charts
from salon.jury.charts import Look
from salon.jury.markup import Child, Html, el
from salon.jury.record import Cost
from salon.jury.report import (
    METRICS,
    Report,
    Row,
    Summary,
    interval,
    metric_of,
    seeds_of,
    show,
    summary,
)
from salon.jury.sections import Cell, breakable, head, looks, run_name, scroll
from salon.jury.units import count, duration, grams, memory, si, watt_hours

NOT_MEASURED = "not measured"


def _sortable(title: str, detail: str | None, first: str, sort: str) -> Html:
    group = el("span", detail, class_="group") if detail else None
    button = el("button", title, type="button")
    return el("th", group, button, scope="col", aria_sort=sort, data_first=first)


def ranking(report: Report) -> Html | None:
    columns = report.columns()
    if not columns:
        return None
    full = [_all_metrics(report, split) for split in report.splits]
    return el("div", _leaderboard(report, columns), full, _legend_of(report))


def _leaderboard(report: Report, columns: list[tuple[str, str]]) -> Html:
    told = {(row.name, *column): summary(row, *column) for row in report.rows for column in columns}
    heads = [_sortable("model", None, "ascending", "none")]
    for i, (split, name) in enumerate(columns):
        first = "ascending" if metric_of(name).better == "less" else "descending"
        title = METRICS[name].title
        heads.append(_sortable(title, split, first, first if i == 0 else "none"))
    best = {column: _best(report, told, column) for column in columns}
    ends = {column: _ends(report, told, column) for column in columns}
    seen = looks(report)
    bodies = []
    for rows, kind in ((report.models, "models"), (report.baselines, "baselines")):
        lines = []
        for row in rows:
            cells = [
                _cell(told[row.name, *c], c[1], seen[row.name], ends[c], row.name in best[c])
                for c in columns
            ]
            detail = row.family + ("" if row.family == "baseline" else f", {_seeds(row)}")
            name_cell = el(
                "th", head(row, seen[row.name], detail), scope="row", data_value=row.name
            )
            lines.append(el("tr", name_cell, cells))
        if lines:
            bodies.append(el("tbody", lines, class_=kind))
    table = el("table", el("thead", el("tr", heads)), bodies, data_sortable=True)
    return scroll("The ranking", table)


def _seeds(row: Row) -> str:
    if len(row.finished) == len(row.records):
        return count(len(row.records), "seed")
    return f"{seeds_of(row)} seeds finished"


def _best(
    report: Report, told: dict[tuple[str, str, str], Summary | None], column: tuple[str, str]
) -> set[str]:
    """The models with the best mean, as it is shown; none where all show the same."""
    means = {
        row.name: shown.mean
        for row in report.models
        if (shown := told[row.name, *column]) is not None
    }
    better = metric_of(column[1]).better
    if better is None or len(means) < 2:
        return set()
    top = max(means.values()) if better == "more" else min(means.values())
    best = {who for who, mean in means.items() if show(column[1], mean) == show(column[1], top)}
    return set() if len(best) == len(means) else best


def _ends(
    report: Report, told: dict[tuple[str, str, str], Summary | None], column: tuple[str, str]
) -> tuple[float, float]:
    """The scale of a column's dots: 0 to 1 for shares, else what the models span."""
    if metric_of(column[1]).share:
        return 0.0, 1.0
    values = [
        number.value
        for row in report.models or report.rows
        if (shown := told[row.name, *column]) is not None
        for _, number in shown.seeds
    ]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _cell(
    told: Summary | None, name: str, look: Look, ends: tuple[float, float], best: bool
) -> Html:
    if told is None:
        return el("td", "–")
    seeds = [
        (show(name, n.value) if seed is None else f"seed {seed}: {show(name, n.value)}", n.value)
        for seed, n in told.seeds
    ]
    bounds = None if told.low is None or told.high is None else (told.low, told.high)
    return el(
        "td",
        el("span", show(name, told.mean), class_="best" if best else None),
        el("span", interval(name, told), class_="range"),
        charts.strip(look, seeds, bounds, ends),
        data_value=told.mean,
    )


def _all_metrics(report: Report, split: str) -> Html:
    """Every metric of a split, seed by seed, for those who cannot read dots."""
    names = report.names(split)
    body = []
    for row in report.rows:
        for record in row.records:
            numbers = record.metrics.get(split, {})
            cells = [el("td", show(n, numbers[n].value) if n in numbers else "–") for n in names]
            reason = None
            if record.failed is not None:
                reason = el("span", f"failed: {record.failed}", class_="kind")
            body.append(
                el("tr", el("th", breakable(run_name(row, record)), reason, scope="row"), cells)
            )
    heads = [el("th", metric_of(name).title, scope="col") for name in names]
    table = el(
        "table",
        el("thead", el("tr", el("th", "run", scope="col"), heads)),
        el("tbody", body),
    )
    return el(
        "details",
        el("summary", f"Every run and every metric, {split}"),
        scroll(f"Every metric, {split}", table),
    )


def _legend_of(report: Report) -> Html:
    named = dict.fromkeys(name for _, name in report.columns())
    told = [f"{METRICS[name].title}: {METRICS[name].told}" for name in named]
    return el("p", "; ".join(told) + ".", class_="note")


def costs(report: Report) -> Html | None:
    rows = [(row, [r.cost for r in row.records if r.cost is not None]) for row in report.models]
    if not any(told for _, told in rows):
        return None
    seen = looks(report)
    titles = [
        "images seen", "time", "FLOPs of training", "trained parameters", "FLOPs a picture",
        "latency, batch 1", "latency, largest batch", "peak memory", "energy of training",
        "CO₂e of training", "parameters that draw", "energy a picture", "CO₂e a picture",
    ]  # fmt: skip
    heads = [_sortable("model", None, "ascending", "none")]
    heads += [_sortable(title, None, "ascending", "none") for title in titles]
    body = []
    for row, told in rows:
        cells = [
            el("td", cell.shown, data_value=cell.value)
            for cell in (_cost_cells(told) if told else [Cell("–")] * len(titles))
        ]
        name = el("th", head(row, seen[row.name], row.family), scope="row", data_value=row.name)
        body.append(el("tr", name, cells))
    table = el("table", el("thead", el("tr", heads)), el("tbody", body), data_sortable=True)
    energy = None
    metered = [cost.energy_wh or cost.sample_wh for _, told in rows for cost in told]
    if not any(metered):
        energy = el("p", "Energy was measured in no run.", class_="missing")
    return el("div", scroll("Costs", table), energy)


def _cost_cells(costs: list[Cost]) -> list[Cell]:
    def mean(name: str) -> float | None:
        known = [value for cost in costs if (value := getattr(cost, name)) is not None]
        return sum(known) / len(known) if known else None

    def cell(value: float | None, text: Callable[[float], str], *more: Child) -> Cell:
        if value is None:
            return Cell(el("span", NOT_MEASURED, class_="range"))
        return Cell([text(value), *more], value)

    def parts(name: str, unit: str) -> Cell:
        told = [getattr(cost, name) for cost in costs if getattr(cost, name)]
        names = dict.fromkeys(part for one in told for part in one)
        means = {part: sum(one.get(part, 0) for one in told) / len(told) for part in names}
        lines = [el("span", f"{part} {si(v, unit)}", class_="range") for part, v in means.items()]
        total = sum(means.values()) if means else None
        return cell(total, lambda value: si(value, unit), lines)

    def told_of(*names: str) -> Html:
        """What the runs say of a number, each thing once."""
        said = dict.fromkeys(tuple(getattr(cost, name) for name in names) for cost in costs)
        lines = [", ".join(map(_source, one)) for one in said if one != (None,) * len(names)]
        return el("span", "; ".join(lines), class_="range")

    batch = next((cost.largest_batch for cost in costs if cost.largest_batch is not None), None)
    per_picture = el("span", f"a picture, of {batch}", class_="range") if batch else None
    return [
        cell(mean("images"), lambda v: f"{v:,.0f}"),
        cell(mean("seconds"), duration),
        parts("flops", "FLOP"),
        parts("parameters", ""),
        cell(mean("sample_flops"), lambda v: si(v, "FLOP")),
        cell(mean("latency"), duration),
        cell(mean("latency_largest"), duration, per_picture),
        cell(mean("peak_memory"), memory),
        cell(mean("energy_wh"), watt_hours, told_of("meter")),
        cell(mean("co2e_g"), grams, told_of("grid", "grid_g_per_kwh")),
        cell(mean("sample_parameters"), lambda v: si(v, "")),
        cell(mean("sample_wh"), watt_hours, told_of("sample_meter")),
        cell(mean("sample_co2e_g"), grams, told_of("sample_grid", "sample_grid_g_per_kwh")),
    ]


def _source(told: str | float | None) -> str:
    """Of an amount of energy or CO2e."""
    if told is None:
        return "grid not named"
    return SOURCES.get(told, told) if isinstance(told, str) else f"{told:g} g/kWh"


SOURCES = {"nvml": "the GPU's counter", "codecarbon": "estimated by codecarbon"}

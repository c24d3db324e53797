"""The sections of the report's page that show quality against cost, of training and of drawing."""

from __future__ import annotations

from collections.abc import Iterator

from salon.jury import charts
from salon.jury.charts import Series, Spot
from salon.jury.markup import Html, el
from salon.jury.record import Point, Record, Setting
from salon.jury.report import AXES, METRICS, Report, Row, equal_budgets, interval, metric_of, show
from salon.jury.sections import breakable, head, legend, looks, run_name, scroll, switch
from salon.jury.units import duration, si

CURVES = 4  # metrics of the curves and sweeps that get a chart


def curves(report: Report) -> Html | None:
    """Quality against images, FLOPs and seconds of training, a line for each seed."""
    points = [point for row in report.models for r in row.records for point in r.curve]
    names = _charted([point.metrics for point in points])
    panels = []
    for axis, title in AXES.items():
        figures = []
        for name in names:
            series = list(_curves(report, axis, name))
            if series:
                figures.append(_lines(series, title, name, every_marker=False))
        if figures:
            panels.append((title, el("div", figures, class_="plates")))
    if not panels:
        return None
    budgets = [_budget(report, name) for name in names[:1]]
    return el("div", legend(report), switch("Quality against", "curves", panels), budgets)


def _charted(told: list[dict[str, float]]) -> list[str]:
    found = dict.fromkeys(name for metrics in told for name in metrics)
    known = [name for name in METRICS if name in found]
    return (known + [name for name in found if name not in METRICS])[:CURVES]


def _curves(report: Report, axis: str, name: str) -> Iterator[Series]:
    seen = looks(report)
    for row in report.models:
        for record in row.records:
            spots = [
                Spot(getattr(p, axis), p.metrics[name], _spot(run_name(row, record), name, p))
                for p in record.curve
                if name in p.metrics and getattr(p, axis) is not None
            ]
            if spots:
                yield Series(run_name(row, record), seen[row.name], spots)


def _spot(who: str, name: str, point: Point) -> str:
    return f"{who}: {show(name, point.metrics[name])} after {point.images_seen:,} images"


def _lines(series: list[Series], x_title: str, name: str, *, every_marker: bool) -> Html:
    metric = metric_of(name)
    chart = charts.lines(
        series, x_title=x_title, y_title=metric.title, share=metric.share, every_marker=every_marker
    )
    better = f" ({metric.better} is better)" if metric.better else ""
    return el("figure", el("h3", metric.title + better), chart)


def _budget(report: Report, name: str) -> Html | None:
    budgets = equal_budgets(report, name)
    if not budgets:
        return None
    shown = {
        "images_seen": lambda v: f"{v:,.0f} images",
        "flops": lambda v: si(v, "FLOP"),
        "seconds": duration,
    }
    heads = [
        el("th", el("span", "after", class_="group"), shown[b.axis](b.spent), scope="col")
        for b in budgets
    ]
    seen, body = looks(report), []
    for row in report.models:
        cells = []
        for budget in budgets:
            told = budget.values.get(row.name)
            cells.append(
                el("td", "–")
                if told is None
                else el(
                    "td",
                    show(name, told.mean),
                    el("span", interval(name, told), class_="range"),
                )
            )
        body.append(el("tr", el("th", head(row, seen[row.name], row.family), scope="row"), cells))
    equal = (
        f"At equal budgets: {metric_of(name).title} at the last validation before each model had "
        "spent what the thriftiest run spent in all."
    )
    table = el(
        "table", el("thead", el("tr", el("th", "model", scope="col"), heads)), el("tbody", body)
    )
    return el("div", el("p", equal, class_="note"), scroll("Quality at equal budgets", table))


def sweeps(report: Report) -> Html | None:
    """Quality against what a picture costs, as a sampler's settings trade the two."""
    told = [setting for row in report.models for r in row.records for setting in r.sweep]
    names = _charted([setting.metrics for setting in told])
    panels = []
    for field, title in (("sample_flops", "FLOPs a picture"), ("latency", "seconds a picture")):
        figures = []
        for name in names:
            series = [
                Series(f"{run_name(row, record)}, {varied}", looks(report)[row.name], spots)
                for row in report.models
                for record in row.records
                for varied, spots in _settings(row, record, field, name).items()
            ]
            if series:
                figures.append(_lines(series, title, name, every_marker=True))
        if figures:
            panels.append((title, el("div", figures, class_="plates")))
    if not panels:
        return None
    return el(
        "div", legend(report), switch("Quality against", "sweeps", panels), _swept(report, names)
    )


def _settings(row: Row, record: Record, field: str, name: str) -> dict[str, list[Spot]]:
    """By what was varied: a line leads through the values of one setting."""
    found: dict[str, list[Spot]] = {}
    for setting in record.sweep:
        cost = getattr(setting, field)
        if cost is not None and name in setting.metrics:
            note = (
                f"{run_name(row, record)}: {settings(setting)}, {show(name, setting.metrics[name])}"
            )
            varied = " and ".join(setting.settings) or "as trained"
            found.setdefault(varied, []).append(Spot(cost, setting.metrics[name], note))
    return found


def settings(setting: Setting) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.settings.items()) or "as trained"


def _swept(report: Report, names: list[str]) -> Html:
    heads = [
        "model",
        "settings",
        "FLOPs a picture",
        "latency",
        *(metric_of(n).title for n in names),
    ]
    body = []
    for row in report.models:
        for record in row.records:
            for one in record.sweep:
                flops = "–" if one.sample_flops is None else si(one.sample_flops, "FLOP")
                cells = [settings(one), flops, _or_dash(one.latency)]
                cells += [show(n, one.metrics[n]) if n in one.metrics else "–" for n in names]
                row_head = el("th", breakable(run_name(row, record)), scope="row")
                body.append(el("tr", row_head, [el("td", cell) for cell in cells]))
    table = el(
        "table",
        el("thead", el("tr", [el("th", title, scope="col") for title in heads])),
        el("tbody", body),
    )
    return el("details", el("summary", "The numbers"), scroll("Quality against cost", table))


def _or_dash(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)

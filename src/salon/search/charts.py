"""The pictures of a study as inline SVG, in the style of the jury's report.

What ended is dark, what was stopped early is grey, the best is red; each mark tells its trial.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from salon.jury.charts import Axis, axis, tick_text
from salon.jury.markup import Html, el
from salon.jury.units import digits
from salon.search.importance import Importance, as_numbers
from salon.search.study import Study, Trial

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 44
COLORS = {"complete": "family-diffusion", "pruned": "family-baseline", "best": "family-gan"}
LONGEST = 26  # characters of a key


class Frame(NamedTuple):
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.x.at(x), self.y.at(y)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    def field(self, x_title: str) -> list[Html]:
        right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for tick in self.y.ticks:
            y = f"{self.at(self.x.low, tick)[1]:.1f}"
            parts.append(el("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
            label = tick_text(tick)
            parts.append(el("text", label, x=LEFT - 8, y=y, dy=4, text_anchor="end"))
        for tick in self.x.ticks:
            x = f"{self.at(tick, self.y.low)[0]:.1f}"
            parts.append(el("line", x1=x, x2=x, y1=floor, y2=floor + 4))
            parts.append(el("text", tick_text(tick), x=x, y=floor + 17, text_anchor="middle"))
        parts.append(el("line", x1=LEFT, x2=right, y1=floor, y2=floor))
        middle = LEFT + (right - LEFT) / 2
        title = el(
            "text", x_title, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="axis-title"
        )
        return [*parts, title]

    def path(self, spots: Sequence[tuple[float, float]], note: str, **attributes: Any) -> Html:
        drawn = "L".join("{:.1f} {:.1f}".format(*self.at(*spot)) for spot in spots)
        return el("path", el("title", note), d=f"M{drawn}", class_="line", **attributes)

    def dot(self, x: float, y: float, note: str) -> Html:
        across, down = self.at(x, y)
        return el(
            "circle", el("title", note), cx=f"{across:.1f}", cy=f"{down:.1f}", r=4, class_="dot"
        )


def history(study: Study, nth: int) -> Html | None:
    """Of one objective: each trial's value, and the best that was complete so far."""
    told = [one for one in study.trials if one.values is not None]
    if not told:
        return None
    best = study.best_numbers()
    frame = _frame([float(one.number) for one in told], [_value(one, nth) for one in told])
    climb: list[tuple[float, float]] = []
    pick = max if study.directions[nth] == "maximize" else min
    for one in (one for one in told if one.state == "complete"):
        value = _value(one, nth)
        climb.append((float(one.number), pick(value, climb[-1][1]) if climb else value))
    line = []
    if len(climb) > 1:
        steps = [climb[0], *(s for a, b in pairwise(climb) for s in ((b[0], a[1]), b))]
        line = [el("g", frame.path(steps, "best so far"), class_=COLORS["best"])]
    dots = [
        el("g", frame.dot(one.number, _value(one, nth), note(study, one)), class_=_color(one, best))
        for one in told
    ]
    label = f"{study.objectives[nth]} of {len(told)} trials, in the order of their numbers"
    return _svg(label, frame.field("trial"), line, dots)


def curves(study: Study) -> Html | None:
    """The objective at each validation; what was pruned ends early."""
    told = [one for one in study.trials if one.curve]
    spots = [spot for one in told for spot in one.curve.items()]
    if not spots:
        return None
    best = study.best_numbers()
    frame = Frame(axis([float(x) for x, _ in spots], from_zero=True), axis([y for _, y in spots]))
    lines = [
        el(
            "g",
            frame.path(sorted(one.curve.items()), note(study, one)),
            frame.dot(max(one.curve), one.curve[max(one.curve)], note(study, one)),
            class_=_color(one, best),
        )
        for one in told
    ]
    label = f"{study.objectives[0]} of {len(told)} trials over images seen"
    return _svg(label, frame.field("images seen"), lines)


def front(study: Study) -> Html | None:
    """The first two objectives; those that no other trial dominates are red."""
    told = [one for one in study.trials if one.values is not None and one.state == "complete"]
    if not told or len(study.objectives) < 2:
        return None
    best = study.best_numbers()
    frame = _frame([_value(one, 1) for one in told], [_value(one, 0) for one in told])
    ranked = sorted((_value(one, 1), _value(one, 0)) for one in study.best())
    line = el("g", frame.path(ranked, "the front"), class_=COLORS["best"]) if ranked[1:] else None
    dots = [
        el(
            "g",
            frame.dot(_value(one, 1), _value(one, 0), note(study, one)),
            class_=_color(one, best),
        )
        for one in told
    ]
    label = f"{study.objectives[0]} against {study.objectives[1]}; {len(best)} trials on the front"
    return _svg(label, frame.field(study.objectives[1]), [line] if line else [], dots)


def bars(rows: Sequence[Importance]) -> Html | None:
    """Strength of each key; the tick is what 95 % of shuffled studies stay below."""
    if not rows:
        return None
    left, right, step = 190, 44, 24
    height, scale = step * len(rows) + 6, WIDTH - left - right
    parts: list[Html] = [el("line", x1=left, x2=left, y1=0, y2=height)]
    for i, row in enumerate(rows):
        middle = 3 + step * i + step / 2
        tick = f"{left + scale * row.chance:.1f}"
        above = row.strength > row.chance
        color = COLORS["complete" if above else "pruned"]
        name = {1: "+ ", -1: "− "}.get(row.sign, "") + short(row.key)
        bar = el(
            "rect", x=left, y=middle - 5, width=f"{scale * row.strength:.1f}", height=10,
            class_="bar",
        )  # fmt: skip
        mark = el("line", x1=tick, x2=tick, y1=middle - 8, y2=middle + 8, class_="tick")
        text = el("text", el("title", row.key), name, x=left - 8, y=middle + 4, text_anchor="end")
        number = el("text", f"{row.strength:.2f}", x=WIDTH, y=middle + 4, text_anchor="end")
        parts += [text, el("g", bar, class_=color), mark, number]
    told = "; ".join(f"{row.key} {row.strength:.2f} (chance {row.chance:.2f})" for row in rows)
    return _svg(f"Importance: {told}", parts, height=height)


def parallel(study: Study) -> Html | None:
    """A line for each complete trial through its settings to its objectives; the best is red."""
    told = study.complete
    if len(told) < 2:
        return None
    columns: list[tuple[str, list[Any]]] = [
        (key, [one.params.get(key) for one in told]) for key in study.keys
    ]
    columns += [(name, [_value(one, i) for one in told]) for i, name in enumerate(study.objectives)]
    scales = [_Scale.of(values) for _, values in columns]
    width = 140 * len(columns)
    floor, top = HEIGHT - 40, 34
    xs = [70 + 140 * i for i in range(len(columns))]
    parts = []
    for x, (key, _), scale in zip(xs, columns, scales, strict=True):
        parts.append(el("line", x1=x, x2=x, y1=top, y2=floor))
        last = re.split(r"[./]", key)[-1]
        name = el("text", el("title", key), short(last, 20), text_anchor="middle")
        parts.append(el("g", name, transform=f"translate({x} 16)"))
        for label, share in scale.marks:
            y = floor - share * (floor - top)
            parts.append(el("text", short(label, 10), x=x + 5, y=f"{y:.1f}", dy=4))
    best = study.best_numbers()
    lines = []
    for i, one in sorted(enumerate(told), key=lambda pair: pair[1].number in best):
        heights = [scale.shares[i] for scale in scales]
        spots = zip(xs, heights, strict=True)
        drawn = "L".join(f"{x} {floor - share * (floor - top):.1f}" for x, share in spots)
        path = el(
            "path", el("title", note(study, one)), d=f"M{drawn}", class_="line",
            stroke_opacity=1 if one.number in best else 0.45,
        )  # fmt: skip
        lines.append(el("g", path, class_=_color(one, best)))
    label = f"Settings and objectives of {len(told)} trials"
    return _svg(label, parts, lines, width=width)


class _Scale(NamedTuple):
    """One axis of the parallel coordinates: where each trial crosses it, from 0 to 1."""

    shares: list[float]
    marks: list[tuple[str, float]]

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Scale:
        numbers = as_numbers(values)
        if numbers is None:
            names = list(dict.fromkeys(map(str, values)))
            steps = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
            return cls([steps[str(one)] for one in values], list(steps.items()))
        one = axis(numbers)
        if min(numbers) > 0 and max(numbers) / min(numbers) > 3:  # searched as a logarithm, mostly
            low, high = min(numbers), max(numbers)
            spread = math.log(high / low)
            shares = [math.log(x / low) / spread for x in numbers]
            middle = math.sqrt(low * high)
            marks = [(digits(x), math.log(x / low) / spread) for x in (low, middle, high)]
            return cls(shares, marks)
        return cls([one.at(x) for x in numbers], [(tick_text(t), one.at(t)) for t in one.ticks])


def note(study: Study, one: Trial) -> str:
    values = "".join(
        f", {name} {digits(value)}"
        for name, value in zip(study.objectives, one.values or (), strict=False)
    )
    settings = ", ".join(f"{key}={told(value)}" for key, value in one.params.items())
    return f"trial {one.number} ({one.state}){values}: {settings}"


def told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(name: str, longest: int = LONGEST) -> str:
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _value(one: Trial, nth: int) -> float:
    assert one.values is not None
    return one.values[nth]


def _frame(xs: Sequence[float], ys: Sequence[float]) -> Frame:
    return Frame(axis(xs), axis(ys))


def _color(one: Trial, best: set[int]) -> str:
    return COLORS[
        "best" if one.number in best else "complete" if one.state == "complete" else "pruned"
    ]


def _svg(label: str, *children: Any, width: int = WIDTH, height: int = HEIGHT) -> Html:
    return el(
        "svg", *children, viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
        class_="chart",
    )  # fmt: skip

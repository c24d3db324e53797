"""Charts as inline SVG, without a library: lines, strips of dots, bars.

Colors come from the page's style sheet by class, so that one picture serves light and dark. A
family has one color in every chart; a model has its own dash and marker, so that no chart needs its
colors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from salon.jury.markup import Html, el
from salon.jury.record import Number
from salon.jury.units import digits, si

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 12, 44  # margins around a line chart's field
SPREAD = 20.0  # highest over lowest from which on an axis is logarithmic
LONGEST = 22  # characters of a name beside a bar

DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4", "5 2", "2 6", "12 3 2 3 2 3")
# Markers as paths in a box of 2 around the origin.
MARKERS = (
    "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0z",
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.15L1.1.85H-1.1z",
    "M0-1.25L1.25 0L0 1.25L-1.25 0z",
    "M0 1.15L1.1-.85H-1.1z",
    "M-.4-1.1h.8v.7h.7v.8h-.7v.7h-.8v-.7h-.7v-.8h.7z",
    "M-1.1-.6L-.6-1.1L0-.5L.6-1.1L1.1-.6L.5 0L1.1.6L.6 1.1L0 .5L-.6 1.1L-1.1.6L-.5 0z",
    "M0-1.2L1.14-.37L.7.97H-.7L-1.14-.37z",
)


class Look(NamedTuple):
    """How a model is drawn everywhere."""

    family: str
    nth: int  # of all models

    @property
    def color(self) -> str:
        return f"family-{self.family.lower()}"

    @property
    def dash(self) -> str | None:
        return DASHES[self.nth % len(DASHES)] or None

    def marker(self, x: float, y: float, size: float = 4.0, note: str | None = None) -> Html:
        # Moved on by one each time around, so that dash and marker do not repeat together.
        path = MARKERS[(self.nth + self.nth // len(DASHES)) % len(MARKERS)]
        place = f"translate({x:.1f} {y:.1f}) scale({size:g})"
        told = el("title", note) if note else None
        return el("path", told, d=path, transform=place, class_="marker")


class Spot(NamedTuple):
    x: float
    y: float
    note: str = ""


class Series(NamedTuple):
    name: str
    look: Look
    spots: list[Spot]


class Axis(NamedTuple):
    low: float
    high: float
    log: bool
    ticks: list[float]

    def at(self, value: float) -> float:
        """From 0 to 1."""
        low, high, value = ((math.log(v) if self.log else v) for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def axis(values: Sequence[float], *, share: bool = False, from_zero: bool = False) -> Axis:
    low, high = min(values), max(values)
    if share and low >= 0 and high <= 1:
        return Axis(0.0, 1.0, False, [0, 0.25, 0.5, 0.75, 1])
    if low > 0 and high / low > SPREAD:
        low, high = low / 1.3, high * 1.3
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = 1 + len(exponents) // 7
        between = (1, 2, 5) if high / low < 200 else (1,)
        ticks = [n * 10.0**e for e in exponents if e % every == 0 for n in between]
        return Axis(low, high, True, [tick for tick in ticks if low <= tick <= high])
    if from_zero and low >= 0 < high:
        step = _nice(high / 5)
        return Axis(0.0, high, False, [i * step for i in range(int(high / step * 1.0001) + 1)])
    if low == high:
        low, high = low - abs(low or 1.0) / 2, high + abs(high or 1.0) / 2
    step = _nice((high - low) / 4)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    count = round((high - low) / step)
    return Axis(low, high, False, [low + i * step for i in range(count + 1)])


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * 0.999)


def lines(
    series: Sequence[Series], *, x_title: str, y_title: str, share: bool, every_marker: bool
) -> Html:
    """A line each, with a marker at its end or at every spot; share: y runs from 0 to 1."""
    spots = [spot for one in series for spot in one.spots]
    x = axis([spot.x for spot in spots], from_zero=True)
    y = axis([spot.y for spot in spots], share=share)

    def place(spot: Spot) -> tuple[float, float]:
        across, up = x.at(spot.x), y.at(spot.y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    drawn = []
    for one in series:
        path = "L".join("{:.1f} {:.1f}".format(*place(spot)) for spot in one.spots)
        marked = one.spots if every_marker else one.spots[-1:]
        drawn.append(
            el(
                "g",
                el("title", one.name),
                el("path", d=f"M{path}", class_="line", stroke_dasharray=one.look.dash),
                [one.look.marker(*place(spot), note=spot.note or one.name) for spot in marked],
                class_=one.look.color,
            )
        )
    ends = "; ".join(f"{one.name} ends at {digits(one.spots[-1].y)}" for one in series)
    return _svg(
        f"{y_title} against {x_title}. {ends}.", WIDTH, HEIGHT, _field(x, y, x_title), drawn
    )


def _field(x: Axis, y: Axis, x_title: str) -> list[Html]:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = floor - y.at(tick) * (floor - TOP)
        parts.append(el("line", x1=LEFT, x2=right, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid"))
        parts.append(el("text", tick_text(tick), x=LEFT - 8, y=f"{at + 4:.1f}", text_anchor="end"))
    for i, tick in enumerate(x.ticks):
        at = LEFT + x.at(tick) * (right - LEFT)
        parts.append(el("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=floor, y2=floor + 4))
        last = i == len(x.ticks) - 1 and at > right - 12
        parts.append(
            el(
                "text",
                tick_text(tick),
                x=f"{min(at, right):.1f}",
                y=floor + 17,
                text_anchor="end" if last else "middle",
            )
        )
    parts.append(el("line", x1=LEFT, x2=right, y1=floor, y2=floor, class_="axis"))
    middle = LEFT + (right - LEFT) / 2
    parts.append(
        el("text", x_title, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="axis-title")
    )
    return parts


def tick_text(value: float) -> str:
    rounded = float(f"{value:.6g}")
    return si(rounded, "").strip() if abs(rounded) >= 1000 else f"{rounded:g}"


def _svg(label: str, width: int, height: int, *children: object) -> Html:
    return el(
        "svg",
        *children,  # type: ignore[arg-type]
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
        class_="chart",
    )


def strip(
    look: Look,
    seeds: Sequence[tuple[str, float]],
    bounds: tuple[float, float] | None,
    ends: tuple[float, float],
) -> Html:
    """A dot for each seed over the interval, on a scale that a whole column shares."""
    width, height, pad = 84, 14, 5
    low, high = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[1] + 0.5)

    def at(value: float) -> float:
        return pad + (min(max(value, low), high) - low) / (high - low) * (width - 2 * pad)

    middle = height / 2
    reach = None
    if bounds is not None:
        left, right = (f"{at(bound):.1f}" for bound in bounds)
        reach = el("line", x1=left, x2=right, y1=middle, y2=middle, class_="reach")
    dots = [
        el("circle", el("title", told), cx=f"{at(v):.1f}", cy=middle, r=3, class_="dot")
        for told, v in seeds
    ]
    ground = el("line", x1=pad, x2=width - pad, y1=middle, y2=middle, class_="grid")
    # The numbers stand beside it as text.
    return el(
        "svg",
        ground,
        el("g", reach, dots, class_=look.color),
        viewBox=f"0 0 {width} {height}",
        class_="strip",
        aria_hidden="true",
    )


class Bar(NamedTuple):
    name: str
    look: Look
    number: Number  # a share


def bars(rows: Sequence[Bar], *, title: str, chance: float | None, ceiling: float | None) -> Html:
    """Shares as horizontal bars with their intervals; chance is dashed, the ceiling solid."""
    width, left, right, step = 360, 132, 44, 22
    height = step * len(rows) + 6
    scale = width - left - right
    parts: list[Html] = [el("line", x1=left, x2=left, y1=0, y2=height, class_="axis")]
    for i, row in enumerate(rows):
        middle, value = 3 + step * i + step / 2, row.number.value
        short = row.name if len(row.name) <= LONGEST else row.name[: LONGEST - 1] + "…"
        parts.append(row_name(short, row, left, middle))
        whisker = None
        if row.number.low is not None and row.number.high is not None:
            ends = [f"{left + scale * bound:.1f}" for bound in (row.number.low, row.number.high)]
            whisker = el("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, class_="whisker")
        bar = el(
            "rect", x=left, y=middle - 5, width=f"{scale * value:.1f}", height=10, class_="bar"
        )
        parts.append(el("g", bar, whisker, class_=row.look.color))
        parts.append(el("text", f"{value:.3f}", x=width, y=middle + 4, text_anchor="end"))
    marks = [(v, name) for v, name in ((chance, "chance"), (ceiling, "ceiling")) if v is not None]
    for mark, name in marks:
        at = f"{left + scale * mark:.1f}"
        line = el("line", el("title", f"{name} {mark:.3f}"), x1=at, x2=at, y1=0, y2=height)
        parts.append(el("g", line, class_=name))
    told = [f"{row.name} {row.number.value:.3f}" for row in rows]
    told += [f"{name} {mark:.3f}" for mark, name in marks]
    return _svg(f"{title}: {'; '.join(told)}.", width, height, parts)


def row_name(short: str, row: Bar, left: int, middle: float) -> Html:
    return el(
        "g",
        el("text", el("title", row.name), short, x=left - 20, y=middle + 4, text_anchor="end"),
        el("g", row.look.marker(left - 10, middle, 3.6), class_=row.look.color),
    )


def share_bar(look: Look, share: float, training: float | None) -> Html:
    """A share in a table's cell; the tick is the training pictures' share."""
    width, height = 46, 10
    tick = None
    if training is not None:
        at = f"{1 + training * (width - 2):.1f}"
        tick = el("line", x1=at, x2=at, y1=0, y2=height, class_="tick")
    return el(
        "svg",
        el("rect", x=1, y=4, width=width - 2, height=2, class_="ground"),
        el(
            "g",
            el("rect", x=1, y=2, width=f"{share * (width - 2):.1f}", height=6, class_="bar"),
            class_=look.color,
        ),
        tick,
        viewBox=f"0 0 {width} {height}",
        class_="share",
        aria_hidden="true",
    )


def swatch(look: Look) -> Html:
    """For legends and row heads: the line and the marker."""
    return el(
        "svg",
        el(
            "g",
            el("path", d="M0 7H34", class_="line", stroke_dasharray=look.dash),
            look.marker(17, 7),
            class_=look.color,
        ),
        viewBox="0 0 34 14",
        class_="swatch",
        aria_hidden="true",
    )

"""The report's page: as text, and in a browser where one is found."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from made_up import benchmark, run
from salon.jury.charts import DASHES, Look, axis
from salon.jury.page import files
from salon.jury.record import Number, Open, Record, Setting
from salon.jury.style import DARK, LIGHT

ATTACK = "<script>alert('x')</script>\"onload=\"alert(1)"
VOID = {"br", "img", "input", "link", "meta", "wbr"}
PARTS = ("metrics", "wall", "curve", "sweep", "cost", "copies", "bias", "hits")
COMMAND = "python -m salon.jury report <runs> & more"
COMMANDS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome")
INSTALLED = ROOT / ".venv" / "browser" / "chromium"
HOW = (
    "no browser: .ci/browser installs one (from npm, or Playwright's), or name the program of an "
    "installed Chromium in CHROMIUM=FILE"
)


class Page(HTMLParser):
    """Every tag and the text; fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> says an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def html(records: list[Record]) -> str:
    return files(records, title="A & B <b>", command=COMMAND)["index.html"]


@pytest.fixture(scope="module")
def whole() -> Page:
    return Page(html(benchmark()))


def test_every_part_is_there(whole: Page) -> None:
    ids = [attributes["id"] for attributes in whole.all("section")]
    assert ids == [
        "ranking", "pairs", "wall", "attributes", "training", "drawing", "cost", "copies", "open",
        "protocol",
    ]  # fmt: skip
    assert "left out" not in whole.text
    assert "A & B <b>" in whole.text
    assert COMMAND in whole.text
    assert "not measured" in whole.text
    assert "Germany 2024, 381 g/kWh" in whole.text
    assert "1 run failed, and is counted" in whole.text
    assert "the loss was not finite after 62,000 images" in whole.text
    for key, value in benchmark()[0].protocol.items():
        assert key in whole.text
        assert str(value) in whole.text
    links = [str(attributes["href"]) for attributes in whole.all("a")]
    assert {link.removeprefix("#") for link in links} == set(ids)
    every = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(every) == len(set(every))


def test_every_seed_is_a_dot(whole: Page) -> None:
    dots = [attributes for attributes in whole.all("circle") if attributes["class"] == "dot"]
    runs = 6 * 3 - 1 + 4  # one failed; four baselines
    columns = 9  # eight metrics of the first split, and the accuracy of the other
    assert len(dots) == runs * columns


def test_a_line_leads_through_the_values_of_one_setting() -> None:
    told = run("latent_diffusion", 0)
    steps, guided = (
        Setting({key: value}, {"fd": 10.0 * value}, 1e7 * value, None)
        for key, value in (("steps", 2), ("guidance", 3.0))
    )
    page = Page(html([told._replace(sweep=(steps, steps._replace(sample_flops=9e7), guided))]))
    for varied in ("steps", "guidance"):
        assert page.text.count(f"latent_diffusion, seed 0, {varied}") == 1


def test_what_the_nearest_caption_can_and_cannot_is_said_where_it_stands(whole: Page) -> None:
    told = "Nearest caption is what a search among the training pictures shows"
    assert told in whole.text
    assert told not in Page(html([run("df_gan", 0)])).text


def test_the_best_are_bold_and_none_where_all_are_equal() -> None:
    def bold(*values: float) -> int:
        records = [
            run(label, 0)._replace(metrics={"test": {"fd": Number(value)}})
            for label, value in zip(("df_gan", "cvae", "attngan"), values, strict=True)
        ]
        return sum(span.get("class") == "best" for span in Page(html(records)).all("span"))

    assert [bold(1, 2, 3), bold(2, 2, 3), bold(2, 2, 2)] == [1, 2, 0]


def test_nothing_is_fetched(whole: Page) -> None:
    for tag, attributes in whole.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    text = html(benchmark())
    assert not re.search(r"https?:|@import|url\(|//\w", re.sub(r"base64,[\w+/=]+", "", text))
    [policy] = [
        str(meta["content"])
        for meta in whole.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_it_can_be_read_without_eyes(whole: Page) -> None:
    assert all(attributes.get("alt") for attributes in whole.all("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in whole.all("th"))
    for svg in whole.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    sorts = {attributes.get("aria-sort") for attributes in whole.all("th")}
    assert sorts == {None, "none", "descending"}
    boxes = [a for a in whole.all("div") if a.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_what_comes_from_data_is_text() -> None:
    told = run("df_gan", 0)
    assert told.copies is not None
    numbers = told.metrics["test"]
    record = told._replace(
        label=ATTACK,
        protocol={ATTACK: ATTACK},
        settings={ATTACK: ATTACK},
        metrics={ATTACK: {**numbers, f"prompt_accuracy/{ATTACK}": numbers["copies"]}},
        wall=tuple(picture._replace(caption=ATTACK) for picture in told.wall[:1]),
        copies=tuple(copy._replace(caption=ATTACK) for copy in told.copies),
        bias=(Open(ATTACK, ATTACK, {ATTACK: 1}, {ATTACK: 1}),),
        curve=tuple(p._replace(metrics={ATTACK: 1.0}) for p in told.curve),
        sweep=tuple(s._replace(settings={ATTACK: ATTACK}) for s in told.sweep),
    )  # fmt: skip
    text = files([record], title=ATTACK, command=ATTACK)["index.html"]
    page = Page(text)
    assert len(page.all("script")) == 1
    assert "<script>alert" not in text
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert('x')</script>") > 15


def test_missing_parts_are_said() -> None:
    bare = run("df_gan", 0)._replace(
        metrics={}, wall=(), curve=(), sweep=(), cost=None, copies=None, bias=(), hits=None
    )
    page = Page(html([bare]))
    assert page.text.count("left out") == len(PARTS) + 1  # accuracies by attribute
    assert not page.all("img")
    none_found = Page(html([bare._replace(copies=())]))
    assert none_found.text.count("left out") == len(PARTS)
    assert "no copy was found" in none_found.text
    cvae = Page(html([run("cvae", 0)]))
    assert "Energy was measured in no run" in cvae.text
    assert "0 Wh" not in cvae.text


def test_the_page_depends_on_the_records_alone() -> None:
    assert html(benchmark()) == html(benchmark()[::-1])
    assert html(benchmark()) == html(benchmark())


# ---- charts and colors


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), (3.0,), (1e-4, 2e-4), (2e7, 1.5e9), (5.0, 9e15), (0.0,), (-3.0, 12.0)]
)
def test_an_axis_holds_its_values_and_has_ticks(values: tuple[float, ...]) -> None:
    for from_zero in (False, True):
        scale = axis(values, from_zero=from_zero)
        assert all(-1e-9 <= scale.at(value) <= 1 + 1e-9 for value in values)
        assert 2 <= len(scale.ticks) <= 9
        assert all(-1e-9 <= scale.at(tick) <= 1 + 1e-9 for tick in scale.ticks)


def test_no_two_models_are_drawn_alike() -> None:
    drawn = set()
    for nth in range(40):
        look = Look("GAN", nth)
        drawn.add((look.dash, look.marker(0, 0)))
    assert len(drawn) == 40
    assert len(set(DASHES)) == len(DASHES)


def linear(color: str) -> Any:
    code = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


# Machado, Oliveira and Fernandes 2009, severity 1.0.
VISIONS = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868],
                   [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968],
                     [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779],
                   [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


def lab(color: str, vision: str) -> Any:
    seen = np.clip(np.array(VISIONS[vision]) @ linear(color), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colors_can_be_told_apart_and_read(colors: dict[str, str]) -> None:
    for name in ("ink", "faint", "gan", "vae", "diffusion", "baseline"):
        assert contrast(colors[name], colors["paper"]) >= 4.5, name
    for vision in VISIONS:
        for one, other in itertools.combinations(("gan", "vae", "diffusion"), 2):
            far = np.linalg.norm(lab(colors[one], vision) - lab(colors[other], vision))
            assert far >= 20, (vision, one, other)


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason=HOW)
    named = os.environ.get("CHROMIUM")
    program = named or next(filter(None, map(shutil.which, [*COMMANDS, str(INSTALLED)])), None)
    # What is installed brings libraries that a bare system lacks.
    libraries = (
        {"LD_LIBRARY_PATH": str(INSTALLED.parent / "lib")} if program == str(INSTALLED) else {}
    )
    with api.sync_playwright() as play:
        try:
            started = play.chromium.launch(executable_path=program, env={**os.environ, **libraries})
        except api.Error as error:
            if named:
                raise
            pytest.skip(f"{HOW} ({str(error).splitlines()[0]})")
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(html(benchmark()))
    return path


@pytest.fixture
def visit(browser: Any, file: Path) -> Iterator[Any]:
    """Opens the page, and fails at the end on a message in its console or a request."""
    heard: list[str] = []
    contexts = []

    def go(scheme: str, width: int) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.append(request.url))
        page.goto(file.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    asked = [line for line in heard if not line.startswith("data:")]
    assert asked == [file.as_uri()] * len(contexts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_drawn(visit: Any, scheme: str, width: int) -> None:
    page = visit(scheme, width)
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    paper = [int((LIGHT if scheme == "light" else DARK)["paper"][i : i + 2], 16) for i in (1, 3, 5)]
    bare = (pixels == paper).all(-1).mean()
    assert 0.5 < bare < 0.99
    assert page.evaluate("document.documentElement.scrollWidth") == width
    inside = "e => e.getBoundingClientRect().right <= innerWidth + 0.5"
    assert page.eval_on_selector_all(
        "p, h1, h2, h3, .chart, .scroll", f"all => all.every({inside})"
    )
    assert page.eval_on_selector_all("img", "all => all.every(e => e.naturalWidth > 0)")
    assert page.eval_on_selector("img", "e => getComputedStyle(e).imageRendering") == "pixelated"
    small = "e => e.closest('.chart') && e.getClientRects().length"
    size = f"all => Math.min(...all.filter({small}).map(e => e.getBoundingClientRect().height))"
    assert page.eval_on_selector_all("svg text", size) >= 11


def column(page: Any, nth: int) -> list[list[float]]:
    """The values of a column of the ranking, body by body."""
    return page.eval_on_selector(
        "#ranking table",
        "(t, n) => [...t.tBodies].map(b => [...b.rows].map(r => Number(r.cells[n].dataset.value)))",
        nth,
    )


def test_headings_sort_by_click_and_by_key(visit: Any) -> None:
    page = visit("light", 1280)
    heads = page.locator("#ranking table[data-sortable] th[scope=col]")
    before = column(page, 1)
    assert before[0] == sorted(before[0], reverse=True)
    heads.nth(1).locator("button").click()
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    turned = column(page, 1)
    assert turned == [sorted(body) for body in before]
    assert turned[0] != before[0]
    fd = heads.nth(4)
    assert "FD" in fd.inner_text()
    for key, order in (("Enter", "ascending"), ("Space", "descending")):
        fd.locator("button").focus()
        page.keyboard.press(key)
        assert fd.get_attribute("aria-sort") == order
        assert heads.nth(1).get_attribute("aria-sort") == "none"
        for body in column(page, 4):
            assert body == sorted(body, reverse=order == "descending")
    heads.nth(0).locator("button").click()
    names = page.eval_on_selector_all(
        "#ranking table[data-sortable] tbody:first-of-type th",
        "all => all.map(e => e.dataset.value)",
    )
    assert names == sorted(names)


def test_what_was_not_measured_is_sorted_last(visit: Any) -> None:
    page = visit("light", 1280)
    page.locator("#cost th[scope=col] button").first.click()  # by name, and cvae is not the last
    energy = page.locator("#cost th[scope=col]").nth(9)
    assert "energy" in energy.inner_text()
    for _ in range(2):
        energy.locator("button").click()
        last = page.locator("#cost tbody tr").last
        assert "cvae" in last.inner_text().replace("\u200b", "")


def test_the_switch_shows_one_panel(visit: Any) -> None:
    page = visit("dark", 360)
    panels = page.locator("#training .panel")
    assert [panels.nth(i).is_visible() for i in range(3)] == [True, False, False]
    page.locator("#training label", has_text="training seconds").click()
    assert [panels.nth(i).is_visible() for i in range(3)] == [False, False, True]
    page.keyboard.press("ArrowLeft")
    assert [panels.nth(i).is_visible() for i in range(3)] == [False, True, False]

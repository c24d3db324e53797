"""HTML and SVG as nested calls: a string among the children is text, and is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"br", "img", "input", "link", "meta", "wbr"}


class Html(str):
    """Markup, which is not escaped again."""


Child = str | None | Iterable["Child"]


def el(tag: str, *children: Child, **attributes: object) -> Html:
    """`class_` stands for class, `data_value` for data-value; None and False leave one out."""
    words = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f'{name}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening if tag in VOID else f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(child))
    return Html("".join(parts))


def head(title: str, *, css: str, policy: str) -> Html:
    """Of a page that stands by itself: nothing is fetched, and what may run is in its policy."""
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", Html(css)),
    )

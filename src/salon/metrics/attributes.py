"""The oracle's verdict attribute by attribute, where some may be left open, and beside it chance.

`salon.metrics.oracle.check` says what a picture got right; here it is counted over a set of
prompts, with a relation also among pictures whose two objects are there (as VISOR conditions it:
Gokhale et al. 2022, arXiv:2212.10015). Where an attribute is left open, what a model fills in is
compared with what training would have it be.

`chance` is exact where no best assignment is needed: for the number of objects, the background,
the shapes, the colors, their binding, and the whole. Those of size, position and relation depend on
which object is taken for which; `salon.metrics.oracle.derange` measures them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from salon.metrics.oracle import Reading, check, gathered
from salon.shapes.prompts import ATTRIBUTES, Composition, Item, pools, trained

KIND = ("shape", "color")
NUMBERS = ("none", "one", "two", "three", "four")


class Rate(NamedTuple):
    held: int
    of: int

    @property
    def share(self) -> float:
        return self.held / self.of


# -- a verdict ----------------------------------------------------------------------------------


def holds(reading: Reading, asked: dict[str, Any]) -> dict[str, bool]:
    """`salon.metrics.oracle.check`, also where a shape or a color is None: left open.

    What is open takes the value with which most holds; it is not judged itself.
    """
    slots = [
        (number, word)
        for number, item in enumerate(asked["objects"])
        for word in KIND
        if item[word] is None
    ]
    if not slots:
        return check(reading, asked)
    seen = {word: sorted({getattr(s, word) for s in reading.objects}) for word in KIND}
    found = []
    for values in product(*(seen[word] or [""] for _, word in slots)):
        filled = [dict(item) for item in asked["objects"]]
        for (number, word), value in zip(slots, values, strict=True):
            filled[number][word] = value
        found.append(check(reading, {**asked, "objects": filled}))
    best = max(found, key=lambda told: (told["all"], sum(told.values())))
    open_words = [w for w in KIND if all(o[w] is None for o in asked["objects"])]
    return {word: held for word, held in best.items() if word not in open_words}


def verdict(readings: Sequence[Reading], asked: Sequence[dict[str, Any]]) -> dict[str, Rate]:
    """How many held, of how many prompts that ask for it: each attribute; `all`, also by the number
    of objects; `relation/given_both`, among pictures with both objects right; and how many pictures
    have something `malformed`.

    Raises ValueError where there is not one reading for each prompt, or none.
    """
    told = gathered(readings, asked, _judged)
    return {name: Rate(sum(held), len(held)) for name, held in told.items()}


def _judged(reading: Reading, wanted: dict[str, Any]) -> dict[str, bool]:
    held = holds(reading, wanted)
    held[f"all/{NUMBERS[len(wanted['objects'])]}"] = held["all"]
    if "relation" in held and held["binding"]:
        held["relation/given_both"] = held["relation"]
    return held


# -- what fills an open attribute -----------------------------------------------------------------


class Bias(NamedTuple):
    shares: dict[str, float]  # of each value, among the pictures that could be counted
    trained: dict[str, float]  # of each value, in training, for the same prompts
    distance: float  # in total variation, from 0 to 1
    floor: float  # the distance that chance alone would leave on average, with so few pictures
    counted: Rate  # pictures of one object and nothing malformed


def attribute_histogram(readings: Sequence[Reading], attribute: str) -> dict[str, int]:
    """How often each value stands in the readings; objects are counted one by one, and what has no
    value (a background off the palette) is not."""
    found: Counter[str] = Counter()
    for reading in readings:
        if attribute == "background":
            found.update([reading.background] if reading.background else [])
        else:
            found.update(getattr(seen, attribute) for seen in reading.objects)
    return {value: found[value] for value in ATTRIBUTES[attribute]}


def total_variation(p: dict[str, float], q: dict[str, float]) -> float:
    return sum(abs(p[value] - q[value]) for value in p.keys() | q.keys()) / 2


def bias(readings: Sequence[Reading], asked: Sequence[dict[str, Any]], attribute: str) -> Bias:
    """What stands where prompts for one object leave an attribute open.

    Raises ValueError where a prompt does not leave it open, or no picture can be counted.
    """
    wanted = [_lone(one, attribute) for one in asked]
    pairs = [
        (reading, one)
        for reading, one in zip(readings, wanted, strict=True)
        if len(reading.objects) == 1 and not reading.malformed
        if attribute != "background" or reading.background
    ]
    if not pairs:
        raise ValueError(
            f"none of {len(readings)} pictures shows one well-formed object, so none says which "
            f"{attribute} it was given"
        )
    expected = [trained(one, attribute) for _, one in pairs]
    mean = {v: sum(one[v] for one in expected) / len(pairs) for v in ATTRIBUTES[attribute]}
    counts = attribute_histogram([reading for reading, _ in pairs], attribute)
    shares = {value: times / len(pairs) for value, times in counts.items()}
    # The mean absolute deviation of a nearly normal share is sqrt(2 / pi) of its deviation.
    variances = [sum(one[v] * (1 - one[v]) for one in expected) / len(pairs) ** 2 for v in mean]
    floor = sum(math.sqrt(2 * variance / math.pi) for variance in variances) / 2
    counted = Rate(len(pairs), len(readings))
    return Bias(shares, mean, total_variation(shares, mean), floor, counted)


def _lone(asked: dict[str, Any], attribute: str) -> Composition:
    composition = Composition(
        asked["background"], tuple(Item(**item) for item in asked["objects"]), asked["relation"]
    )
    items = composition.items
    told = composition if attribute == "background" else items[0]
    if len(items) != 1 or getattr(told, attribute) is not None:
        raise ValueError(f"{asked} asks for {attribute}, or for several objects: nothing is open")
    return composition


# -- chance -------------------------------------------------------------------------------------


@lru_cache
def chance(asked: str, drawn: str | None = None) -> dict[str, float]:
    """How often each attribute holds in a picture that was drawn for a random other prompt.

    The picture shows exactly what a prompt of the set `drawn` asks, the same set if None: so a
    model does that obeys the set's distribution and ignores the words. With drawn="seen" it is one
    that draws only what training has, which for held-out compositions never is right.
    """
    shown = drawn or asked
    groups = [(a, d) for a in pools(asked) for d in pools(shown)]
    told: dict[str, list[float]] = {}
    for a, d in groups:
        for name, share in _chances(a, d):
            told.setdefault(name, []).append(share)
    return {name: sum(shares) / len(shares) for name, shares in sorted(told.items())}


def _chances(
    asked: tuple[Composition, ...], drawn: tuple[Composition, ...]
) -> Iterator[tuple[str, float]]:
    """Of one number of objects against one number of objects."""
    a, d = asked[0], drawn[0]
    count = len(a.items) == len(d.items)
    yield "count", float(count)
    if a.background is not None:
        yield "background", _agree(asked, drawn, lambda one: one.background)
    for number, word in enumerate(KIND):
        if a.items[0][number] is not None:
            yield word, _included(asked, drawn, [number])
    if len(a.items) > 1:
        yield "binding", _included(asked, drawn, [0, 1])
    yield "all", _agree(asked, drawn, lambda one: _masked(one, a)) if count else 0.0


def _masked(one: Composition, mask: Composition) -> Hashable:
    """What of a composition the mask does not leave open, whatever the order of its items."""
    fields = [i for i, value in enumerate(mask.items[0]) if value is not None]
    items = tuple(tuple(item[i] for i in fields) for item in one.items)
    return items, mask.background and one.background, mask.relation and one.relation


def _agree(
    asked: tuple[Composition, ...],
    drawn: tuple[Composition, ...],
    signature: Callable[[Composition], Hashable],
) -> float:
    """How often the signatures of one of each are equal."""
    a, d = (Counter(map(signature, side)) for side in (asked, drawn))
    return sum(times * d[it] for it, times in a.items()) / len(asked) / len(drawn)


def _included(
    asked: tuple[Composition, ...], drawn: tuple[Composition, ...], fields: list[int]
) -> float:
    """How often the items of one, seen in these fields, are among those of the other."""

    def signature(one: Composition) -> tuple[Any, ...]:
        return tuple(sorted(tuple(str(item[i]) for i in fields) for item in one.items))

    if len(asked[0].items) == len(drawn[0].items):
        return _agree(asked, drawn, signature)
    a, d = (Counter(map(signature, side)) for side in (asked, drawn))
    right = sum(m * n for x, m in a.items() for y, n in d.items() if Counter(x) <= Counter(y))
    return right / len(asked) / len(drawn)

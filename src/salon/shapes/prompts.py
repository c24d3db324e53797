"""Fixed sets of prompts, each a question about what was learnt.

    seen                 compositions as training has them             one and two objects
    heldout              a shape in a color that it never had          one and two objects
    heldout_relations    a shape in a relation it never stood in       two objects
    lists                pairs, only listed: no relation is said       two objects
    count_extrapolation  lists of more objects than training has       three objects
    phrasings            the scenes of `seen`, in sentences never met  one and two objects
    open_ATTRIBUTE       one attribute left open                       one object

Training shows at most two objects, always related and never listed, so that a fall from `seen` to
`count_extrapolation` is of the list and of the count; `lists` is the list alone. Every word of all
sets but `open_shape` ("a red shape") occurs in training; that a color is left open ("a circle")
does not, while sizes, positions and backgrounds are left open there as here. Prompt i of
`phrasings` has the scene of prompt i of `seen`, so that the two are compared prompt by prompt.

A set is every composition there is, in a fixed random order, and then again, in other words and
places; a set of one and two objects alternates between them. Held-out compositions by design:
Okawa et al. 2023, arXiv:2310.09336.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from salon.shapes import world
from salon.shapes.captions import OPENINGS, POSITION_WORDS, RELATION_WORDS, SIZE_WORDS, describe
from salon.shapes.world import INVERSE, RELATIONS, Object, Scene

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "color": tuple(world.COLORS),
    "size": tuple(world.SIZES),
    "position": world.POSITIONS,
    "background": tuple(world.BACKGROUNDS),
}
KINDS = tuple(product(ATTRIBUTES["shape"], ATTRIBUTES["color"]))


class Item(NamedTuple):
    """What is asked of one object; None leaves it open."""

    shape: str | None
    color: str | None
    size: str | None
    position: str | None = None


class Composition(NamedTuple):
    """What is asked of a picture; None leaves it open."""

    background: str | None
    items: tuple[Item, ...]
    relation: str | None = None  # of the first item to the second

    @property
    def asked(self) -> dict[str, Any]:
        """As `salon.shapes.captions.Caption.asked` says it."""
        objects = [item._asdict() for item in self.items]
        return {"background": self.background, "relation": self.relation, "objects": objects}


class SetPrompt(NamedTuple):
    key: str
    caption: str
    asked: dict[str, Any]
    example: Scene  # one of the scenes that obey it


def never_trained(composition: Composition) -> set[str]:
    """Which kinds of held-out compositions occur in it: "color", "relation"."""
    found = set()
    if any((item.shape, item.color) in world.HELD_OUT_COLORS for item in composition.items):
        found.add("color")
    if composition.relation is not None:
        roles = (composition.relation, INVERSE[composition.relation])
        shapes = [item.shape for item in composition.items]
        if any(pair in world.HELD_OUT_RELATIONS for pair in zip(shapes, roles, strict=True)):
            found.add("relation")
    return found


# -- every composition there is -----------------------------------------------------------------


def _ones() -> Iterator[Composition]:
    sizes, positions, grounds = (ATTRIBUTES[key] for key in ("size", "position", "background"))
    for (shape, color), size, position, ground in product(KINDS, sizes, positions, grounds):
        yield Composition(ground, (Item(shape, color, size, position),))


def _twos(relations: Sequence[str | None]) -> Iterator[Composition]:
    sizes, grounds = ATTRIBUTES["size"], ATTRIBUTES["background"]
    for pair, first, second, ground in product(combinations(KINDS, 2), sizes, sizes, grounds):
        items = (Item(*pair[0], first), Item(*pair[1], second))
        for relation in relations:
            if relation is None or _room_for(items, relation):
                yield Composition(ground, items, relation)


def _threes() -> Iterator[Composition]:
    """At most one of three is large: there is no room for more."""
    sizes = [tuple("large" if i == large else "small" for i in range(3)) for large in range(4)]
    for three, told, ground in product(combinations(KINDS, 3), sizes, ATTRIBUTES["background"]):
        items = tuple(Item(*kind, size) for kind, size in zip(three, told, strict=True))
        yield Composition(ground, items)


def _room_for(items: tuple[Item, ...], relation: str) -> bool:
    """Two large triangles are too wide to stand side by side."""
    across = relation in ("left of", "right of")
    width = 0.0
    for item in items:
        left, up, right, down = world.EXTENTS[str(item.shape)]
        width += world.SIZES[str(item.size)] * (left + right if across else up + down)
    return width + world.GAP + 2 * world.MARGIN <= 1


def _opened(attribute: str) -> Iterator[Composition]:
    known = {}  # in order, and each once
    for one in _ones():
        if attribute == "background":
            known[one._replace(background=None)] = True
        else:
            known[one._replace(items=(one.items[0]._replace(**{attribute: None}),))] = True
    for composition in known:
        if composition.items[0][:2] not in world.HELD_OUT_COLORS:
            yield composition


def _only(held_out: set[str], compositions: Iterator[Composition]) -> list[Composition]:
    return [one for one in compositions if never_trained(one) == held_out]


class _Set(NamedTuple):
    number: int  # in the seed; those of the data set's splits are below 100
    pools: Callable[[], list[list[Composition]]]


SETS: dict[str, _Set] = {
    "seen": _Set(100, lambda: [_only(set(), _ones()), _only(set(), _twos(RELATIONS))]),
    "heldout": _Set(101, lambda: [_only({"color"}, _ones()), _only({"color"}, _twos(RELATIONS))]),
    "heldout_relations": _Set(102, lambda: [_only({"relation"}, _twos(RELATIONS))]),
    "lists": _Set(103, lambda: [_only(set(), _twos((None,)))]),
    "count_extrapolation": _Set(104, lambda: [_only(set(), _threes())]),
    "phrasings": _Set(105, lambda: [_only(set(), _ones()), _only(set(), _twos(RELATIONS))]),
    "open_shape": _Set(106, lambda: [list(_opened("shape"))]),
    "open_color": _Set(107, lambda: [list(_opened("color"))]),
    "open_size": _Set(108, lambda: [list(_opened("size"))]),
    "open_position": _Set(109, lambda: [list(_opened("position"))]),
    "open_background": _Set(110, lambda: [list(_opened("background"))]),
}
OPEN = {f"open_{attribute}": attribute for attribute in ATTRIBUTES}


@lru_cache
def pools(name: str) -> tuple[tuple[Composition, ...], ...]:
    """The compositions of a set, those of one object apart from those of two.

    Raises ValueError where there is no such set.
    """
    if name not in SETS:
        raise ValueError(f"no set of prompts is called {name!r}; there are {', '.join(SETS)}")
    return tuple(tuple(pool) for pool in SETS[name].pools())


def count(name: str) -> int:
    """How many prompts of a set there are before one of its compositions comes again."""
    found = pools(name)
    return len(found) * min(map(len, found))


# -- prompts ------------------------------------------------------------------------------------


def prompts(name: str, number: int, *, world_seed: int) -> list[SetPrompt]:
    """The first prompts of a set; a longer list begins with the shorter one.

    Raises ValueError where there is no such set.
    """
    return [prompt(name, i, world_seed=world_seed) for i in range(number)]


def prompt(name: str, index: int, *, world_seed: int) -> SetPrompt:
    source = "seen" if name == "phrasings" else name
    groups = pools(source)
    group, place = index % len(groups), index // len(groups)
    order = _order(source, group, world_seed)
    composition = groups[group][order[place % len(order)]]
    rng = np.random.default_rng([world_seed, SETS[source].number, index])
    scene = _example(composition, rng)
    if name in ("lists", "count_extrapolation"):
        caption = _listed(composition, rng)
    elif name == "phrasings":
        other = np.random.default_rng([world_seed, SETS[name].number, index])
        caption = _rephrased(composition, other)
    elif name in OPEN:
        caption = _opened_words(composition, rng)
    else:
        caption = describe(scene, rng, full=True).text
    return SetPrompt(f"{name}-{index:05d}", caption, composition.asked, scene)


@lru_cache
def _order(name: str, pool: int, world_seed: int) -> tuple[int, ...]:
    rng = np.random.default_rng([world_seed, SETS[name].number])
    return tuple(rng.permutation(len(pools(name)[pool])).tolist())


def trained(composition: Composition, attribute: str) -> dict[str, float]:
    """How training distributes an attribute of a lone object, given the rest that is asked:
    alike over all that makes no held-out composition."""
    assert len(composition.items) == 1, composition
    if attribute not in ("shape", "color"):
        allowed = list(ATTRIBUTES[attribute])
    else:
        item = composition.items[0]
        made = {v: item._replace(**{attribute: v})[:2] for v in ATTRIBUTES[attribute]}
        allowed = [v for v, kind in made.items() if kind not in world.HELD_OUT_COLORS]
    return {v: (v in allowed) / len(allowed) for v in ATTRIBUTES[attribute]}


# -- a scene that obeys -------------------------------------------------------------------------


def _example(composition: Composition, rng: np.random.Generator) -> Scene:
    """What is open is drawn as training would."""
    if len(composition.items) == 1:
        (item,) = composition.items
        chosen = {}
        for attribute, asked in {**item._asdict(), "background": composition.background}.items():
            shares = trained(composition, attribute)
            drawn = rng.choice(list(shares), p=list(shares.values()))
            chosen[attribute] = str(drawn) if asked is None else asked
        x, y = world.spots(rng)[chosen["position"]]
        alone = Object(chosen["shape"], chosen["color"], chosen["size"], x=x, y=y)
        return Scene(chosen["background"], (alone,))
    assert composition.background is not None
    while True:
        objects = tuple(_somewhere(item, rng) for item in composition.items)
        if world.stand_apart(objects) and _stands(objects, composition.relation):
            return Scene(composition.background, objects, composition.relation)


def _somewhere(item: Item, rng: np.random.Generator) -> Object:
    shape, color, size = (str(word) for word in item[:3])
    left, up, right, down = (world.SIZES[size] * extent for extent in world.EXTENTS[shape])
    low = (world.MARGIN + left, world.MARGIN + up)
    high = (1 - world.MARGIN - right, 1 - world.MARGIN - down)
    x, y = (round(float(u), 4) for u in rng.uniform(low, high))
    return Object(shape, color, size, x=x, y=y)


def _stands(objects: Sequence[Object], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = objects
    return world.relation(first.x, first.y, second.x, second.y) == relation


# -- in words -----------------------------------------------------------------------------------


def _pick(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]


def _noun(item: Item, rng: np.random.Generator) -> str:
    size = [_pick(SIZE_WORDS[item.size], rng)] if item.size else []
    color = [item.color] if item.color else []
    return " ".join(["a", *size, *color, item.shape or "shape"])


def _listed(composition: Composition, rng: np.random.Generator) -> str:
    order = rng.permutation(len(composition.items))
    nouns = [_noun(composition.items[i], rng) for i in order]
    return _pick(OPENINGS, rng) + ", ".join([*nouns, f"a {composition.background} background"])


def _opened_words(composition: Composition, rng: np.random.Generator) -> str:
    (item,) = composition.items
    place = f" {_pick(POSITION_WORDS[item.position], rng)}" if item.position else ""
    ground = f" on a {composition.background} background" if composition.background else ""
    return _pick(OPENINGS, rng) + _noun(item, rng) + place + ground


NEW_PHRASINGS = {
    1: (
        "{place}, {first} on {ground}",
        "{first} on {ground}, {place}",
        "there is {ground}, {first} {place}",
        "on {ground}, {place}, there is {first}",
    ),
    2: (
        "{relation} {second}, there is {first}, {ground}",
        "on {ground}, {relation} {second}, {first}",
        "{first} on {ground}, {relation} {second}",
        "there is {ground}, {first} {relation} {second}",
    ),
}


def _rephrased(composition: Composition, rng: np.random.Generator) -> str:
    items, relation = composition.items, composition.relation
    if relation is not None and rng.random() < 0.5:
        items, relation = items[::-1], INVERSE[relation]
    words = {"ground": f"a {composition.background} background"}
    words |= zip(("first", "second"), (_noun(item, rng) for item in items), strict=False)
    if relation is None:
        words["place"] = _pick(POSITION_WORDS[str(items[0].position)], rng)
    else:
        words["relation"] = _pick(RELATION_WORDS[relation], rng)
    return _pick(NEW_PHRASINGS[len(items)], rng).format(**words)

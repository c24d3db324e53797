"""The specification of the world: what there is, where it may stand, what is held out.

Lengths are shares of the image side; x runs right and y runs down, both from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

# Changes whenever the same seed would draw other pictures or say other words: part of the
# data set's identity.
VERSION = 1

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 40),
    "purple": (160, 40, 200),
    "cyan": (50, 205, 225),
}
BACKGROUNDS = {"white": (250, 250, 250), "gray": (128, 128, 128), "black": (15, 15, 15)}
SIZES = {"small": 0.12, "large": 0.20}  # radius of the circle; the other shapes scale with it
POSITIONS = ("left", "right", "top", "bottom", "center")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# The least RGB distance between two colors, and between a color and a background.
MIN_CONTRAST = 90.0
# Outermost extents (left, up, right, down) in units of the circle's radius. Any large shape has
# nearly twice the area of any small one, so that size is not a matter of shape.
EXTENTS = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.886, 0.886, 0.886, 0.886),
    "triangle": (1.1258, 1.3, 1.1258, 0.65),  # equilateral, circumradius 1.3, around its centroid
    "cross": (1.05, 1.05, 1.05, 1.05),
}
MARGIN = 0.02  # between an object and the border
GAP = 0.07  # between two objects
CENTERED = 0.10  # an object this near the middle, on both axes, stands "in the center"
# A relation is said only where the other axis is at most this share of the main one.
UNAMBIGUOUS = 0.6

# Compositions that never occur in train, validation and test: every shape, color and relation is
# still seen, only not together. A pair (shape, relation) means that an object of this shape stands
# in this relation to the other object, whichever of the two the caption names first.
HELD_OUT_COLORS = frozenset(
    {("circle", "purple"), ("square", "cyan"), ("triangle", "yellow"), ("cross", "green")}
)
HELD_OUT_RELATIONS = frozenset({("cross", "above"), ("circle", "left of")})


@dataclass(frozen=True)
class Object:
    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        radius = SIZES[self.size]
        left, up, right, down = (radius * extent for extent in EXTENTS[self.shape])
        return self.x - left, self.y - up, self.x + right, self.y + down

    @property
    def position(self) -> str:
        return position(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[Object, ...]
    relation: str | None = None  # of the first object to the second

    def to_json(self) -> dict[str, Any]:
        objects = [
            {"shape": o.shape, "color": o.color, "size": o.size, "x": o.x, "y": o.y}
            for o in self.objects
        ]
        return {"background": self.background, "objects": objects, "relation": self.relation}

    @classmethod
    def from_json(cls, scene: dict[str, Any]) -> Scene:
        objects = tuple(Object(**fields) for fields in scene["objects"])
        return cls(scene["background"], objects, scene["relation"])


def position(x: float, y: float) -> str:
    """The word for where a lone object stands: "center", or the side that it is nearest to."""
    dx, dy = x - 0.5, y - 0.5
    if max(abs(dx), abs(dy)) <= CENTERED:
        return "center"
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "bottom" if dy > 0 else "top"


def relation(ax: float, ay: float, bx: float, by: float) -> str | None:
    """The relation of a to b, or None where the diagonal makes it ambiguous."""
    dx, dy = ax - bx, ay - by
    if min(abs(dx), abs(dy)) > UNAMBIGUOUS * max(abs(dx), abs(dy)):
        return None
    if abs(dx) >= abs(dy):
        return "right of" if dx > 0 else "left of"
    return "below" if dy > 0 else "above"


def held_out(scene: Scene) -> list[str]:
    """The held-out compositions in this scene, as words."""
    found = [f"{o.color} {o.shape}" for o in scene.objects if (o.shape, o.color) in HELD_OUT_COLORS]
    if scene.relation is not None:
        roles = (scene.relation, INVERSE[scene.relation])
        found += [
            f"{o.shape} {role}"
            for o, role in zip(scene.objects, roles, strict=True)
            if (o.shape, role) in HELD_OUT_RELATIONS
        ]
    return found


def draw_scene(rng: np.random.Generator, *, objects: int, held_out_only: bool = False) -> Scene:
    """A random scene of one or two objects, with or without a held-out composition in it.

    Rejection keeps the distribution simple: uniform over attributes and places, given the rules.
    """
    draw = _draw_one if objects == 1 else _draw_two
    while True:
        scene = draw(rng)
        if scene is not None and bool(held_out(scene)) == held_out_only:
            return scene


def _attributes(rng: np.random.Generator) -> tuple[str, str, str]:
    shape, color, size = (rng.integers(len(group)) for group in (SHAPES, COLORS, SIZES))
    return SHAPES[shape], tuple(COLORS)[color], tuple(SIZES)[size]


def _background(rng: np.random.Generator) -> str:
    return tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]


def spots(rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """A random place for a lone object in each of the positions."""
    along, across = rng.uniform(0.14, 0.22), rng.uniform(-0.08, 0.08)
    near = rng.uniform(-0.06, 0.06, size=2)
    offsets = {
        "left": (-along, across),
        "right": (along, across),
        "top": (across, -along),
        "bottom": (across, along),
        "center": (near[0], near[1]),
    }
    return {
        word: (round(0.5 + float(dx), 4), round(0.5 + float(dy), 4))
        for word, (dx, dy) in offsets.items()
    }


def stand_apart(objects: Sequence[Object]) -> bool:
    """Whether every object keeps its distance from the border and from each other."""
    boxes = [item.box for item in objects]
    for left, top, right, bottom in boxes:
        if min(left, top) < MARGIN or max(right, bottom) > 1 - MARGIN:
            return False
    return all(
        max(l1 - r2, l2 - r1, t1 - b2, t2 - b1) >= GAP
        for (l1, t1, r1, b1), (l2, t2, r2, b2) in combinations(boxes, 2)
    )


def _draw_one(rng: np.random.Generator) -> Scene:
    places = spots(rng)
    x, y = places[POSITIONS[rng.integers(len(POSITIONS))]]
    return Scene(_background(rng), (Object(*_attributes(rng), x=x, y=y),))


def _draw_two(rng: np.random.Generator) -> Scene | None:
    first, second = (
        Object(*_attributes(rng), *(round(float(u), 4) for u in rng.uniform(0, 1, size=2)))
        for _ in range(2)
    )
    if (first.shape, first.color) == (second.shape, second.color):
        return None
    if not stand_apart((first, second)):
        return None
    named = relation(first.x, first.y, second.x, second.y)
    return None if named is None else Scene(_background(rng), (first, second), named)

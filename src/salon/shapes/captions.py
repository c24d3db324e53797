"""Scenes in words: several phrasings for a scene, some of which leave attributes open."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from salon.shapes.world import INVERSE, Object, Scene

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
POSITION_WORDS = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
}
RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
OPENINGS = ("", "", "a picture of ", "an image of ", "there is ")
# How often a caption says an attribute that it may leave open.
SAYS_SIZE, SAYS_POSITION, SAYS_BACKGROUND = 0.8, 0.85, 0.75


class Caption(NamedTuple):
    text: str
    # What the words ask for: {"background": str | None, "relation": str | None,
    # "objects": [{"shape", "color", "size": str | None, "position": str | None}]}
    asked: dict[str, Any]


def describe(scene: Scene, rng: np.random.Generator, *, full: bool = False) -> Caption:
    """One phrasing of the scene; `full` says every attribute."""

    def says(share: float) -> bool:
        return bool(rng.random() < share) or full

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    def noun(item: Object, size: str | None) -> str:
        words = [item.color, item.shape]
        if size is not None:
            words.insert(0, pick(SIZE_WORDS[size]))
        return "a " + " ".join(words)

    objects, relation = scene.objects, scene.relation
    if relation is not None and rng.random() < 0.5:  # the same fact, told from the other object
        objects, relation = objects[::-1], INVERSE[relation]
    sizes = [item.size if says(SAYS_SIZE) else None for item in objects]
    background = scene.background if says(SAYS_BACKGROUND) else None
    where = None
    if relation is None:
        where = objects[0].position if says(SAYS_POSITION) else None
        body = noun(objects[0], sizes[0])
        body += f" {pick(POSITION_WORDS[where])}" if where else ""
    else:
        first, second = (noun(o, size) for o, size in zip(objects, sizes, strict=True))
        body = f"{first} {pick(RELATION_WORDS[relation])} {second}"

    body = pick(OPENINGS) + body
    if background is not None:
        ground = f"a {background} background"
        body = pick((f"{body} on {ground}", f"{body}, {ground}", f"on {ground}, {body}"))
    asked_objects = [
        {"shape": o.shape, "color": o.color, "size": size, "position": where}
        for o, size in zip(objects, sizes, strict=True)
    ]
    return Caption(body, {"background": background, "relation": relation, "objects": asked_objects})

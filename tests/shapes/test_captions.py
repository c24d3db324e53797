import re
from typing import Any

import numpy as np
import pytest

from salon.shapes import world
from salon.shapes.captions import Caption, describe
from salon.shapes.world import Scene, draw_scene

SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
SHAPES, COLORS = "|".join(world.SHAPES), "|".join(world.COLORS)
NOUN = re.compile(rf"\ba (?:({'|'.join(SIZES)}) )?({COLORS}) ({SHAPES})\b")
BACKGROUND = re.compile(r"\ba (\w+) background\b")
PLACE = re.compile(r"\b(?:on|at|in) the (left|right|top|bottom|center|middle)\b(?! of)")
BETWEEN = re.compile(r" (to the left of|left of|to the right of|right of|above|below|under) a ")


def captions(count: int, seed: int, *, full: bool) -> list[tuple[Scene, Caption]]:
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, objects=1 + i % 2, held_out_only=i % 4 < 2) for i in range(count)]
    return [(scene, describe(scene, rng, full=full)) for scene in scenes]


EVERY = captions(600, 0, full=False)
FULL = captions(300, 1, full=True)


def parse(text: str) -> dict[str, Any]:
    """What the words say, without a look at how they were made."""
    ground, place, between = BACKGROUND.search(text), PLACE.search(text), BETWEEN.search(text)
    where = None if place is None else place[1].replace("middle", "center")
    objects = [
        {"shape": shape, "color": color, "size": SIZES.get(size), "position": where}
        for size, color, shape in NOUN.findall(text)
    ]
    relation = between and between[1].removeprefix("to the ").replace("under", "below")
    return {"background": ground and ground[1], "relation": relation, "objects": objects}


@pytest.mark.parametrize(("_", "caption"), EVERY[:200] + FULL[:100])
def test_the_words_ask_what_asked_says(_: Scene, caption: Caption) -> None:
    assert parse(caption.text) == caption.asked


def test_what_is_asked_is_true_of_the_scene() -> None:
    for scene, (text, asked) in EVERY + FULL:
        assert asked["background"] in (None, scene.background), text
        assert len(asked["objects"]) == len(scene.objects), text
        kinds = {(o.shape, o.color): o for o in scene.objects}
        shown = [kinds[item["shape"], item["color"]] for item in asked["objects"]]
        for item, truth in zip(asked["objects"], shown, strict=True):
            assert item["size"] in (None, truth.size), text
            assert item["position"] in (None, truth.position), text
        if len(shown) == 2:
            a, b = shown
            assert asked["relation"] == world.relation(a.x, a.y, b.x, b.y), text
        else:
            assert asked["relation"] is None, text


def test_pairs_are_told_from_either_object() -> None:
    pairs = [(scene, caption.asked) for scene, caption in EVERY if len(scene.objects) == 2]
    flipped = [asked["relation"] != scene.relation for scene, asked in pairs]
    assert 0.4 < np.mean(flipped) < 0.6
    for (scene, asked), flip in zip(pairs, flipped, strict=True):
        first = scene.objects[1 if flip else 0]
        assert (asked["objects"][0]["shape"], asked["objects"][0]["color"]) == (
            first.shape,
            first.color,
        )


def test_full_captions_say_everything() -> None:
    for scene, (text, asked) in FULL:
        assert asked["background"] is not None, text
        assert all(item["size"] is not None for item in asked["objects"]), text
        if len(scene.objects) == 1:
            assert asked["objects"][0]["position"] is not None, text


def test_other_captions_leave_things_open() -> None:
    asked = [caption.asked for _, caption in EVERY]
    sizes = [item["size"] for one in asked for item in one["objects"]]
    places = [one["objects"][0]["position"] for one in asked if one["relation"] is None]
    for said in ([one["background"] for one in asked], sizes, places):
        assert 0.05 < np.mean([word is None for word in said]) < 0.4


def test_a_scene_has_several_phrasings() -> None:
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, objects=2)
    assert len({describe(scene, rng, full=True).text for _ in range(50)}) > 20


def test_same_seed_same_words() -> None:
    scene = draw_scene(np.random.default_rng(0), objects=2)
    texts = [describe(scene, np.random.default_rng(3)).text for _ in range(2)]
    assert texts[0] == texts[1]

"""The fixed sets of prompts: what they hold out, what they say, and what training never says."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from salon.data.shapes import SPLITS
from salon.shapes import world
from salon.shapes.captions import describe
from salon.shapes.prompts import (
    ATTRIBUTES,
    NEW_PHRASINGS,
    OPEN,
    SETS,
    Composition,
    Item,
    count,
    never_trained,
    pools,
    prompt,
    prompts,
    trained,
)
from salon.shapes.world import draw_scene

# Training's sentences, without a look at how they are made.
KIND = rf"(?:{'|'.join(world.COLORS)}) (?:{'|'.join(world.SHAPES)})"
NOUN = rf"a (?:(?:small|little|large|big) )?{KIND}"
PLACE = r"(?:(?:on|at) the (?:left|right)|at the (?:top|bottom)|in the (?:center|middle))"
BETWEEN = r"(?:(?:to the )?(?:left|right) of|above|below|under)"
BODY = rf"(?:a picture of |an image of |there is )?{NOUN}(?: {PLACE}| {BETWEEN} {NOUN})?"
GROUND = rf"a (?:{'|'.join(world.BACKGROUNDS)}) background"
SENTENCE = re.compile(rf"{BODY}(?: on {GROUND}|, {GROUND})?|on {GROUND}, {BODY}")


def training(number: int) -> list[str]:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, objects=1 + i % 2) for i in range(number)]
    return [describe(scene, rng, full=i % 3 == 0).text for i, scene in enumerate(scenes)]


TRAINING = training(1500)
WORDS = {word for text in TRAINING for word in re.findall(r"\w+", text)}
FIRST = {name: prompts(name, 120, world_seed=3) for name in SETS}


def test_how_many_there_are() -> None:
    assert {name: count(name) for name in SETS} == {
        "seen": 1200, "heldout": 240, "heldout_relations": 2280, "lists": 2280,
        "count_extrapolation": 13680, "phrasings": 1200, "open_shape": 180, "open_color": 120,
        "open_size": 300, "open_position": 120, "open_background": 200,
    }  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_prompt_is_a_function_of_its_number(name: str) -> None:
    again = [prompt(name, i, world_seed=3) for i in reversed(range(120))][::-1]
    assert again == FIRST[name]
    assert FIRST[name][:40] != prompts(name, 40, world_seed=4)
    assert len({one.key for one in FIRST[name]}) == 120


@pytest.mark.parametrize("name", SETS)
def test_every_composition_comes_once_before_any_comes_again(name: str) -> None:
    groups = pools(name)
    number = min(count(name), 300)
    asked = [str(one.asked) for one in prompts(name, number, world_seed=0)]
    assert len(set(asked)) == number
    after = prompt(name, len(groups) * len(groups[0]), world_seed=0)
    assert after.asked == prompt(name, 0, world_seed=0).asked
    assert after.example != prompt(name, 0, world_seed=0).example


@pytest.mark.parametrize("name", SETS)
def test_the_example_obeys(name: str) -> None:
    for _, text, asked, scene in FIRST[name]:
        assert world.stand_apart(scene.objects), text
        assert asked["background"] in (None, scene.background)
        assert len(asked["objects"]) == len(scene.objects)
        for item, shown in zip(asked["objects"], scene.objects, strict=True):
            for word in ("shape", "color", "size", "position"):
                assert item[word] in (None, getattr(shown, word)), text
        assert asked["relation"] == scene.relation
        if scene.relation:
            a, b = scene.objects
            assert world.relation(a.x, a.y, b.x, b.y) == scene.relation


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("seen", set()), ("phrasings", set()), ("lists", set()), ("count_extrapolation", set()),
        ("heldout", {"color"}), ("heldout_relations", {"relation"}),
        *((name, set()) for name in OPEN),
    ],
)  # fmt: skip
def test_what_training_never_showed(name: str, absent: set[str]) -> None:
    for pool in pools(name):
        assert {frozenset(never_trained(one)) for one in pool} == {frozenset(absent)}
    for one in FIRST[name]:
        told = " ".join(world.held_out(one.example))
        kinds = {"color"} if any(color in told for color in world.COLORS) else set()
        kinds |= {"relation"} if any(word in told for word in world.RELATIONS) else set()
        assert kinds == absent


def test_the_pools_are_all_that_a_scene_can_be() -> None:
    """Each that the world draws is in a pool, and some pool has nothing else."""
    rng = np.random.default_rng(5)
    kinds = {kind: i for i, kind in enumerate((s, c) for s in world.SHAPES for c in world.COLORS)}
    known = {one for name in ("seen", "heldout", "heldout_relations") for one in pools(name)[-1]}
    for i in range(400):
        scene = draw_scene(rng, objects=2, held_out_only=i % 2 == 0)
        relation = scene.relation
        items = tuple(Item(o.shape, o.color, o.size) for o in scene.objects)
        if kinds[items[0][:2]] > kinds[items[1][:2]]:
            items, relation = items[::-1], world.INVERSE[str(relation)]
        one = Composition(scene.background, items, relation)
        assert (one in known) == (len(never_trained(one)) < 2)


def test_training_says_what_the_pattern_says() -> None:
    assert all(SENTENCE.fullmatch(text) for text in TRAINING)


@pytest.mark.parametrize("name", ["seen", "heldout", "heldout_relations"])
def test_known_phrasings(name: str) -> None:
    assert all(SENTENCE.fullmatch(one.caption) for one in FIRST[name])


@pytest.mark.parametrize("name", ["phrasings", "lists", "count_extrapolation", "open_shape"])
def test_sentences_that_training_never_says(name: str) -> None:
    assert not any(SENTENCE.fullmatch(one.caption) for one in FIRST[name])


@pytest.mark.parametrize("name", SETS)
def test_every_word_is_known_but_one(name: str) -> None:
    words = {word for one in FIRST[name] for word in re.findall(r"\w+", one.caption)}
    assert words - WORDS == ({"shape"} if name == "open_shape" else set())


def test_phrasings_are_of_the_scenes_of_seen() -> None:
    for known, new in zip(FIRST["seen"], FIRST["phrasings"], strict=True):
        assert (known.asked, known.example) == (new.asked, new.example)
        assert known.caption != new.caption


def test_new_phrasings_say_what_is_asked() -> None:
    """Also where the pair is told from the other side, or the relation comes first."""
    used = set()
    for _, text, asked, _ in FIRST["phrasings"]:
        nouns = re.findall(rf"({'|'.join(world.COLORS)}) ({'|'.join(world.SHAPES)})", text)
        wanted = [(o["color"], o["shape"]) for o in asked["objects"]]
        assert Counter(nouns) == Counter(wanted)
        assert f"a {asked['background']} background" in text
        if asked["relation"] is None:
            where = asked["objects"][0]["position"]
            assert re.search(rf"the ({where}|{'middle' if where == 'center' else where})\b", text)
            continue
        found = re.search(rf"(?:to the )?(left of|right of|above|below|under) ({NOUN})", text)
        assert found is not None, text
        said = found[1].replace("under", "below")
        second = tuple(found[2].split()[-2:])
        first_is_first = second == wanted[1]
        assert said == (asked["relation"] if first_is_first else world.INVERSE[asked["relation"]])
        used.add((text.startswith(found[0]), first_is_first))
    assert len(used) == 4
    assert {len(templates) for templates in NEW_PHRASINGS.values()} == {4}


def test_more_objects_than_training_has() -> None:
    assert {len(one.example.objects) for one in FIRST["count_extrapolation"]} == {3}
    assert {len(one.example.objects) for one in FIRST["lists"]} == {2}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_what_is_open_is_not_said(attribute: str) -> None:
    for one in FIRST[f"open_{attribute}"]:
        words = set(one.caption.split())
        assert not words & set(ATTRIBUTES[attribute])
        (item,) = one.asked["objects"]
        said = {**item, "background": one.asked["background"]}
        assert [word for word, value in said.items() if value is None] == [attribute]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_training_distributes_the_open_attribute_so(attribute: str) -> None:
    """As counted among scenes that training draws."""
    rng = np.random.default_rng(9)
    scenes = [draw_scene(rng, objects=1) for _ in range(6000)]
    asked = Composition("gray", (Item("square", "yellow", "small", "left"),))
    if attribute == "background":
        asked = asked._replace(background=None)
    else:
        asked = asked._replace(items=(asked.items[0]._replace(**{attribute: None}),))
    item = asked.items[0]
    counts: Counter[str] = Counter()
    for scene in scenes:
        (shown,) = scene.objects
        if item.shape in (None, shown.shape) and item.color in (None, shown.color):
            holder = scene if attribute == "background" else shown
            counts[getattr(holder, attribute)] += 1
    expected = trained(asked, attribute)
    assert sum(expected.values()) == pytest.approx(1)
    assert set(expected) == set(ATTRIBUTES[attribute])
    for value, share in expected.items():
        assert counts[value] / counts.total() == pytest.approx(share, abs=0.06)
        assert (counts[value] == 0) == (share == 0)


def test_the_streams_are_apart_from_the_data_sets() -> None:
    numbers = [one.number for one in SETS.values()]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & {number for number, _ in SPLITS.values()}


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="'unseen'; there are seen, heldout"):
        prompts("unseen", 3, world_seed=0)

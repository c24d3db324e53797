import json
import math
from itertools import combinations, product

import numpy as np
import pytest

from salon.shapes import world
from salon.shapes.world import Object, Scene, draw_scene, held_out


def draw(count: int, seed: int, **which: bool) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, objects=1 + i % 2, **which) for i in range(count)]


TRAINING = draw(1200, seed=0)
HELD_OUT = draw(300, seed=1, held_out_only=True)
EVERY = TRAINING + HELD_OUT
PAIRS = [scene for scene in EVERY if len(scene.objects) == 2]


def test_colors_are_told_apart() -> None:
    pairs = [*combinations(world.COLORS.values(), 2)]
    pairs += product(world.COLORS.values(), world.BACKGROUNDS.values())
    pairs += combinations(world.BACKGROUNDS.values(), 2)
    assert min(math.dist(a, b) for a, b in pairs) >= world.MIN_CONTRAST


def test_objects_stand_inside() -> None:
    for item in (item for scene in EVERY for item in scene.objects):
        assert min(item.box) >= world.MARGIN - 1e-9
        assert max(item.box) <= 1 - world.MARGIN + 1e-9


def test_objects_keep_apart() -> None:
    for scene in PAIRS:
        (l1, t1, r1, b1), (l2, t2, r2, b2) = (item.box for item in scene.objects)
        assert max(l1 - r2, l2 - r1, t1 - b2, t2 - b1) >= world.GAP - 1e-9


def test_two_objects_are_never_alike() -> None:
    assert all(len({(o.shape, o.color) for o in scene.objects}) == 2 for scene in PAIRS)


def test_relations_are_true_and_unambiguous() -> None:
    for scene in PAIRS:
        a, b = scene.objects
        dx, dy = a.x - b.x, a.y - b.y
        side = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
        assert side[scene.relation] == max(abs(dx), abs(dy))
        assert min(abs(dx), abs(dy)) <= world.UNAMBIGUOUS * max(abs(dx), abs(dy))


def test_relation_is_none_on_the_diagonal() -> None:
    assert world.relation(0.3, 0.3, 0.7, 0.7) is None
    assert world.relation(0.3, 0.52, 0.7, 0.7) == "left of"
    assert world.relation(0.52, 0.3, 0.7, 0.7) == "above"


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (0.5, 0.5, "center"),
        (0.41, 0.59, "center"),
        (0.3, 0.45, "left"),
        (0.7, 0.55, "right"),
        (0.55, 0.3, "top"),
        (0.45, 0.7, "bottom"),
    ],
)
def test_position(x: float, y: float, word: str) -> None:
    assert world.position(x, y) == word


def test_lone_objects_stand_clear_of_where_two_positions_meet() -> None:
    alone = [scene.objects[0] for scene in EVERY if len(scene.objects) == 1]
    assert {item.position for item in alone} == set(world.POSITIONS)
    for item, dx, dy in product(alone, (-0.02, 0.02), (-0.02, 0.02)):
        assert world.position(item.x + dx, item.y + dy) == item.position


def compositions(scene: Scene) -> set[tuple[str, str]]:
    """Of what is there, told anew: (shape, color) and (shape, relation to the other)."""
    found = {(o.shape, o.color) for o in scene.objects} & world.HELD_OUT_COLORS
    if len(scene.objects) == 2:
        a, b = scene.objects
        for one, other in ((a, b), (b, a)):
            word = world.relation(one.x, one.y, other.x, other.y)
            found |= {(one.shape, str(word))} & world.HELD_OUT_RELATIONS
    return found


def test_held_out_compositions_are_never_trained_on() -> None:
    assert not any(compositions(scene) for scene in TRAINING)
    assert not any(held_out(scene) for scene in TRAINING)


def test_held_out_scenes_each_hold_one_and_together_all() -> None:
    assert all(compositions(scene) for scene in HELD_OUT)
    assert all(len(held_out(scene)) >= len(compositions(scene)) for scene in HELD_OUT)
    together = set().union(*(compositions(scene) for scene in HELD_OUT))
    assert together == world.HELD_OUT_COLORS | world.HELD_OUT_RELATIONS


def test_held_out_is_told_from_either_object() -> None:
    cross, square = (
        Object("cross", "red", "small", 0.5, 0.3),
        Object("square", "red", "small", 0.5, 0.7),
    )
    assert held_out(Scene("white", (cross, square), "above")) == ["cross above"]
    assert held_out(Scene("white", (square, cross), "below")) == ["cross above"]
    assert held_out(Scene("white", (square, cross), "above")) == []


def test_everything_is_still_seen_in_training() -> None:
    objects = [item for scene in TRAINING for item in scene.objects]
    kinds = set(product(world.SHAPES, world.COLORS)) - world.HELD_OUT_COLORS
    assert {(o.shape, o.color) for o in objects} == kinds
    assert {(o.shape, o.size) for o in objects} == set(product(world.SHAPES, world.SIZES))
    assert {scene.relation for scene in TRAINING} == {None, *world.RELATIONS}
    assert {scene.background for scene in TRAINING} == set(world.BACKGROUNDS)


def test_same_seed_same_scenes() -> None:
    assert draw(20, seed=5) == draw(20, seed=5)
    assert draw(20, seed=5) != draw(20, seed=6)


def test_scenes_survive_json() -> None:
    for scene in EVERY[:100]:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene

"""The verdict by attribute: garbage scores nothing, real renders all, and chance is as stated."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from salon.metrics import attributes, oracle
from salon.metrics.attributes import (
    Rate,
    attribute_histogram,
    bias,
    chance,
    holds,
    total_variation,
    verdict,
)
from salon.metrics.oracle import Reading, Seen, read
from salon.shapes.prompts import ATTRIBUTES, OPEN, SETS, SetPrompt, prompts, trained
from salon.shapes.render import render
from salon.shapes.world import Scene

Image = NDArray[np.uint8]
NUMBER = 40


@cache
def given(name: str, number: int = NUMBER) -> list[SetPrompt]:
    return prompts(name, number, world_seed=2)


@cache
def pictures(name: str) -> list[Image]:
    return [render(one.example, 32) for one in given(name)]


def asked(name: str, number: int = NUMBER) -> list[dict]:
    return [one.asked for one in given(name, number)]


def reading_of(scene: Scene) -> Reading:
    seen = tuple(Seen(o.shape, o.color, o.size, o.x, o.y, 1.0) for o in scene.objects)
    return Reading(scene.background, seen, 0)


def to_bytes(image: NDArray[np.float64]) -> Image:
    return np.rint(image.clip(0, 255)).astype(np.uint8)


# -- what scores all, and what scores nothing --------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_real_renders_hold_everything(name: str) -> None:
    told = verdict([read(image) for image in pictures(name)], asked(name))
    assert told.pop("malformed").held == 0
    assert {one.share for one in told.values()} == {1.0}
    if name in OPEN:
        assert OPEN[name] not in told
    assert told["all"].of == NUMBER


def noise(image: Image, rng: np.random.Generator) -> Image:
    return rng.integers(0, 256, image.shape, dtype=np.uint8)


def constant(image: Image, rng: np.random.Generator) -> Image:
    return np.full(image.shape, rng.integers(0, 256, 3), np.uint8)


def its_background(image: Image, rng: np.random.Generator) -> Image:
    return np.broadcast_to(image[0, 0], image.shape).copy()


def saturated(image: Image, rng: np.random.Generator) -> Image:
    return np.where(image > 127, 255, 0).astype(np.uint8)


def inverted(image: Image, rng: np.random.Generator) -> Image:
    return 255 - image


def beyond_recognition(image: Image, rng: np.random.Generator) -> Image:
    return to_bytes(ndimage.gaussian_filter(image.astype(float), (6, 6, 0), mode="nearest"))


GARBAGE = [noise, constant, its_background, saturated, inverted, beyond_recognition]


@pytest.mark.parametrize("name", ["seen", "heldout", "count_extrapolation", "open_size"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_holds_nothing(
    garbage: Callable[[Image, np.random.Generator], Image], name: str
) -> None:
    rng = np.random.default_rng(0)
    told = verdict([read(garbage(image, rng)) for image in pictures(name)], asked(name))
    assert told["all"] == Rate(0, NUMBER)


@pytest.mark.parametrize("name", SETS)
def test_ghosts_of_two_renders_hold_nothing(name: str) -> None:
    both = [image.astype(float) for image in pictures(name)]
    ghosts = [to_bytes((a + b) / 2) for a, b in zip(both, both[7:] + both[:7], strict=True)]
    told = verdict([read(ghost) for ghost in ghosts], asked(name))
    assert told["all"] == Rate(0, NUMBER)


# -- what is open --------------------------------------------------------------------------------

RED = Seen("circle", "red", "small", 0.5, 0.5, 1.0)
BLUE = Seen("square", "blue", "large", 0.2, 0.5, 1.0)


def wants(*objects: dict, background: str | None = None, relation: str | None = None) -> dict:
    bare = {"shape": None, "color": None, "size": None, "position": None}
    return {
        "background": background,
        "relation": relation,
        "objects": [{**bare, **item} for item in objects],
    }


def test_an_open_kind_takes_what_is_there() -> None:
    seen = Reading("gray", (RED,), 0)
    assert holds(seen, wants({"color": "red"})) == {"count": True, "color": True, "all": True}
    assert holds(seen, wants({"shape": "circle"})) == {"count": True, "shape": True, "all": True}
    assert holds(seen, wants({})) == {"count": True, "all": True}
    assert holds(seen, wants({"color": "blue"})) == {"count": True, "color": False, "all": False}
    told = holds(seen, wants({"color": "red", "size": "large"}, background="gray"))
    assert told == {"count": True, "color": True, "size": False, "background": True, "all": False}
    assert not holds(Reading("gray", (), 0), wants({"color": "red"}))["all"]
    assert not holds(seen._replace(malformed=1), wants({"color": "red"}))["all"]
    assert not holds(Reading("gray", (RED, BLUE), 0), wants({"color": "red"}))["count"]


def test_of_two_the_open_one_takes_what_fits_best() -> None:
    pair = wants({"color": "red"}, {"shape": "square", "color": "blue"}, relation="right of")
    seen = Reading("gray", (RED, BLUE), 0)
    assert holds(seen, pair)["all"]
    assert not holds(seen, {**pair, "relation": "left of"})["relation"]
    assert "shape" in holds(seen, pair)  # of the other object


def test_where_nothing_is_open_it_is_the_oracles() -> None:
    for one, image in zip(given("seen"), pictures("seen")[1:], strict=False):
        assert holds(read(image), one.asked) == oracle.check(read(image), one.asked)


# -- rates --------------------------------------------------------------------------------------


def test_rates_count_the_prompts_that_ask() -> None:
    pair = wants(
        {"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"},
        relation="right of",
    )  # fmt: skip
    lone = wants({"shape": "circle", "color": "red"})
    both, mirrored = Reading("gray", (RED, BLUE), 0), Reading("gray", (RED, BLUE), 0)
    mirrored = both._replace(objects=(RED, BLUE._replace(x=0.8)))
    absent = both._replace(objects=(RED,), malformed=2)
    readings = [both, mirrored, absent, Reading("gray", (RED,), 0)]
    told = verdict(readings, [pair, pair, pair, lone])
    assert told["relation"] == Rate(1, 3)
    assert told["relation/given_both"] == Rate(1, 2)
    assert told["binding"] == Rate(2, 3)
    assert told["all/two"] == Rate(1, 3)
    assert told["all/one"] == Rate(1, 1)
    assert told["all"] == Rate(2, 4)
    assert told["count"] == Rate(3, 4)
    assert told["malformed"] == Rate(1, 4)
    assert told["all"].share == 0.5


def test_one_reading_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        verdict([Reading(None, (), 0)], [wants({}), wants({})])
    with pytest.raises(ValueError, match="0 images for 0 prompts"):
        verdict([], [])


# -- chance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_chance_is_that_of_shuffled_prompts(name: str) -> None:
    number = 240
    readings = [reading_of(one.example) for one in given(name, number)]
    wanted, stated = asked(name, number), chance(name)
    rng = np.random.default_rng(6)
    found: dict[str, list[float]] = {}
    for _ in range(12):
        others = [wanted[i] for i in rng.permutation(number)]
        for key, rate in verdict(readings, others).items():
            found.setdefault(key, []).append(rate.share)
    for key, share in stated.items():
        # Of 240 prompts and not of all, so a tenth of a third, and more than 2,880 pairs alone
        # would leave.
        assert np.mean(found[key]) == pytest.approx(share, abs=0.035), key
    assert stated["all"] < 0.01


def test_chance_in_numbers() -> None:
    one, two = 1 / 600, 1 / 6780
    assert chance("seen")["all"] == pytest.approx((one + two) / 4)
    assert chance("seen")["count"] == 0.5
    assert chance("seen")["background"] == pytest.approx(1 / 3)
    assert chance("count_extrapolation")["all"] == pytest.approx(1 / 13680)
    assert chance("open_color")["all"] == pytest.approx(1 / 120)
    assert chance("open_shape")["color"] == pytest.approx(1 / 6)
    assert "shape" not in chance("open_shape")
    assert "background" not in chance("open_background")
    assert chance("open_position")["shape"] == pytest.approx(1 / 4)


def test_who_draws_only_what_training_has_never_binds_what_it_held_out() -> None:
    seen, own = chance("heldout", drawn="seen"), chance("heldout")
    assert seen["all"] == seen["binding"] == 0
    assert own["all"] > 0
    assert own["binding"] > 0
    assert seen["background"] == pytest.approx(1 / 3)
    assert chance("lists", drawn="seen")["all"] > 0
    assert chance("count_extrapolation", drawn="seen")["count"] == 0


def test_chance_of_more_objects_than_are_asked() -> None:
    """A pair holds a lone one's shape by two chances."""
    readings = [reading_of(one.example) for one in given("lists", 300)]
    lone = [one.asked for one in given("open_color", 120)]
    found = [holds(reading, one)["shape"] for reading in readings for one in lone[:60]]
    assert chance("open_color", drawn="lists")["shape"] == pytest.approx(np.mean(found), abs=0.03)


# -- bias -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_what_training_draws_has_no_bias(attribute: str) -> None:
    name = f"open_{attribute}"
    found = bias([reading_of(one.example) for one in given(name, 300)], asked(name, 300), attribute)
    assert found.counted == Rate(300, 300)
    assert sum(found.trained.values()) == pytest.approx(1)
    assert found.distance < 2.5 * found.floor
    assert 0 < found.floor < 0.1


def test_the_floor_is_what_chance_leaves() -> None:
    rng = np.random.default_rng(1)
    wanted = asked("open_color", 120)
    distances, floors = [], []
    for _ in range(60):
        readings = []
        for one in wanted:
            share = trained(attributes._lone(one, "color"), "color")
            color = rng.choice(list(share), p=list(share.values()))
            readings.append(Reading("gray", (RED._replace(color=str(color)),), 0))
        found = bias(readings, wanted, "color")
        distances.append(found.distance)
        floors.append(found.floor)
    assert np.mean(distances) == pytest.approx(np.mean(floors), rel=0.1)


def test_a_model_that_likes_one_color_is_told() -> None:
    wanted = asked("open_color", 120)
    found = bias([Reading("gray", (RED,), 0)] * 120, wanted, "color")
    assert found.shares["red"] == 1
    assert found.distance == pytest.approx(1 - found.trained["red"])
    assert found.distance > 0.75


def test_only_pictures_of_one_object_are_counted() -> None:
    wanted = asked("open_color", 4)
    seen = Reading("gray", (RED,), 0)
    many = [seen, seen._replace(objects=(RED, BLUE)), seen._replace(malformed=1), seen]
    assert bias(many, wanted, "color").counted == Rate(2, 4)
    with pytest.raises(ValueError, match="none of 4 pictures shows one well-formed object"):
        bias([Reading("gray", (), 0)] * 4, wanted, "color")
    with pytest.raises(ValueError, match="nothing is open"):
        bias([seen] * 4, wanted, "size")
    no_ground = [seen._replace(background=None)] * 2 + [seen] * 2
    assert bias(no_ground, asked("open_background", 4), "background").counted == Rate(2, 4)


def test_a_histogram_has_every_value() -> None:
    readings = [Reading("gray", (RED, BLUE), 0), Reading(None, (RED,), 1)]
    assert attribute_histogram(readings, "color") == {
        "red": 2, "green": 0, "blue": 1, "yellow": 0, "purple": 0, "cyan": 0,
    }  # fmt: skip
    assert attribute_histogram(readings, "background") == {"white": 0, "gray": 1, "black": 0}
    assert attribute_histogram(readings, "position")["center"] == 2


def test_total_variation() -> None:
    assert total_variation({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}) == 1
    assert total_variation({"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}) == 0.25

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from salon.metrics import oracle
from salon.metrics.oracle import Reading, Seen, asked_of, check, judge, read
from salon.shapes import world
from salon.shapes.captions import describe
from salon.shapes.render import render
from salon.shapes.world import Object, Scene, draw_scene

Image = NDArray[np.uint8]


def draw(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, objects=1 + i % 2, held_out_only=i % 4 < 2) for i in range(count)]


SCENES = draw(300, seed=0)
ASKED = [asked_of(scene) for scene in SCENES]
RENDERS = {side: [render(scene, side) for scene in SCENES] for side in (32, 64)}


def to_bytes(image: NDArray[np.float64]) -> Image:
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def to_tensor(images: list[Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


def blurred(image: Image, sigma: float) -> Image:
    return to_bytes(ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest"))


def noisy(image: Image) -> Image:
    rng = np.random.default_rng(int(image.sum()))
    return to_bytes(image + rng.normal(0, 0.03 * 255, image.shape))


def faded(image: Image) -> Image:
    return to_bytes((image - 127.5) * 0.7 + 127.5)


# --- what it reads ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", RENDERS)
def test_clean_renders_are_read_without_error(side: int) -> None:
    rng = np.random.default_rng(1)
    asked = [describe(scene, rng, full=True).asked for scene in SCENES]
    scores = oracle.score(to_tensor(RENDERS[side]), asked)
    assert scores.pop("malformed") == 0
    assert set(scores) == {
        *("all", "all/one", "all/two", "background", "binding", "color", "count"),
        *("position", "relation", "shape", "size"),
    }
    assert set(scores.values()) == {1.0}


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_places_are_read_to_a_fraction_of_a_pixel(side: int) -> None:
    for scene in SCENES[:: side // 4]:
        reading = read(render(scene, side))
        truth = sorted((o.x, o.y) for o in scene.objects)
        found = sorted((s.x, s.y) for s in reading.objects)
        np.testing.assert_allclose(found, truth, atol=0.15 / side)
        assert all(seen.fit > 0.9 for seen in reading.objects)


@pytest.mark.parametrize("side", RENDERS)
@pytest.mark.parametrize("distort", [noisy, faded, lambda image: blurred(image, 0.5)])
def test_mild_distortions_are_forgiven(distort: Callable[[Image], Image], side: int) -> None:
    readings = [read(distort(image)) for image in RENDERS[side]]
    assert judge(readings, ASKED)["all"] >= 0.97


# How much blur the reader forgives at 32 px: sigma in pixels, share read wholly right. A change of
# a threshold moves these, and with them every number that was ever measured.
BLUR_CURVE = {0.75: 1.00, 1.0: 0.94, 1.25: 0.50, 1.5: 0.37, 2.0: 0.09, 3.0: 0.01}


@pytest.mark.parametrize(("sigma", "share"), BLUR_CURVE.items())
def test_the_blur_curve_stays(sigma: float, share: float) -> None:
    readings = [read(blurred(image, sigma)) for image in RENDERS[32]]
    assert judge(readings, ASKED)["all"] == pytest.approx(share, abs=0.03)


def test_reading_twice_is_reading_once() -> None:
    image = noisy(RENDERS[32][1])
    before = image.copy()
    assert read(image) == read(image)
    np.testing.assert_array_equal(image, before)


# --- what it refuses ----------------------------------------------------------------------------


def noise(rng: np.random.Generator, side: int) -> Image:
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def constant(rng: np.random.Generator, side: int) -> Image:
    return np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)


def blocks(rng: np.random.Generator, side: int) -> Image:
    saturated = rng.choice([0, 255], (8, 8, 3)).astype(np.uint8)
    return saturated.repeat(side // 8, 0).repeat(side // 8, 1)


def ghost(rng: np.random.Generator, side: int) -> Image:
    first, second = rng.choice(len(SCENES), 2, replace=False)
    return to_bytes((RENDERS[side][first].astype(float) + RENDERS[side][second]) / 2)


@pytest.mark.parametrize("side", RENDERS)
@pytest.mark.parametrize("garbage", [noise, constant, blocks, ghost])
def test_garbage_is_never_right(
    garbage: Callable[[np.random.Generator, int], Image], side: int
) -> None:
    rng = np.random.default_rng(0)
    scores = judge([read(garbage(rng, side)) for _ in SCENES], ASKED)
    assert scores["all"] == 0
    assert scores["count"] <= 0.01
    assert scores["malformed"] == (0 if garbage is constant else 1)


def test_ghosts_of_a_scene_with_itself_moved_are_refused() -> None:
    for scene in (scene for scene in SCENES if len(scene.objects) == 1):
        item = scene.objects[0]
        moved = replace(item, x=item.x + (0.15 if item.x < 0.5 else -0.15))
        pair = [render(Scene(scene.background, (one,)), 32).astype(float) for one in (item, moved)]
        assert not check(read(to_bytes(sum(pair) / 2)), asked_of(scene))["all"]


RED = Object("square", "red", "large", 0.35, 0.5)
CLEAN = render(Scene("white", (RED,)), 32)


def painted(rows: slice, columns: slice, color: tuple[int, int, int]) -> Reading:
    image = CLEAN.copy()
    image[rows, columns] = color
    return read(image)


def test_specks_are_ignored_until_they_are_more() -> None:
    faint, full = (250, 200, 250), world.COLORS["blue"]
    assert painted(slice(20, 21), slice(24, 26), faint) == read(CLEAN)
    assert painted(slice(20, 22), slice(24, 26), full).malformed == 1
    assert len(painted(slice(20, 22), slice(24, 26), full).objects) == 1


def test_half_an_object_is_malformed() -> None:
    reading = painted(slice(None), slice(0, 11), world.BACKGROUNDS["white"])
    assert (reading.objects, reading.malformed) == ((), 1)


def test_an_object_of_two_colors_is_malformed() -> None:
    reading = painted(slice(10, 15), slice(5, 18), world.COLORS["blue"])
    assert (reading.objects, reading.malformed) == ((), 1)


def test_a_fringe_of_another_color_is_malformed() -> None:
    image = render(Scene("black", (RED,)), 32)
    assert read(image).malformed == 0
    image[10:22, 17:22] = world.COLORS["green"]
    reading = read(image)
    assert (reading.objects, reading.malformed) == ((), 1)


def test_an_object_cut_by_the_border_is_malformed() -> None:
    reading = read(render(Scene("white", (replace(RED, x=0.0),)), 32))
    assert (reading.objects, reading.malformed) == ((), 1)


def test_an_object_between_the_sizes_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.SIZES, "large", 0.155)
    image = render(Scene("white", (RED,)), 64)
    monkeypatch.undo()
    reading = read(image)
    assert (reading.objects, reading.malformed) == ((), 1)


def test_a_color_off_the_palette_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.COLORS, "red", (235, 130, 30))  # orange
    image = render(Scene("white", (RED,)), 32)
    monkeypatch.undo()
    reading = read(image)
    assert (reading.objects, reading.malformed) == ((), 1)


def test_a_background_off_the_palette_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.BACKGROUNDS, "white", (120, 200, 40))
    image = render(Scene("white", (replace(RED, color="blue"),)), 32)
    monkeypatch.undo()
    reading = read(image)
    assert reading.background is None
    assert [seen.color for seen in reading.objects] == ["blue"]


# --- what it blames -----------------------------------------------------------------------------

LEFT = Object("circle", "red", "small", 0.25, 0.5)
RIGHT = Object("square", "blue", "large", 0.7, 0.55)
ONE = Scene("gray", (LEFT,))
TWO = Scene("gray", (LEFT, RIGHT), "left of")
EXTRA = Object("cross", "yellow", "small", 0.25, 0.85)


def two(left: Object = LEFT, right: Object = RIGHT) -> Scene:
    return replace(TWO, objects=(left, right))


CHANGES = {
    "one: nothing": (ONE, ONE, set()),
    "one: shape": (ONE, replace(ONE, objects=(replace(LEFT, shape="cross"),)), {"shape"}),
    "one: color": (ONE, replace(ONE, objects=(replace(LEFT, color="cyan"),)), {"color"}),
    "one: size": (ONE, replace(ONE, objects=(replace(LEFT, size="large"),)), {"size"}),
    "one: position": (ONE, replace(ONE, objects=(replace(LEFT, x=0.7),)), {"position"}),
    "one: background": (ONE, replace(ONE, background="black"), {"background"}),
    "one: extra": (ONE, replace(ONE, objects=(LEFT, EXTRA)), {"count"}),
    "one: missing": (
        ONE,
        replace(ONE, objects=()),
        {"count", "shape", "color", "size", "position"},
    ),
    "two: nothing": (TWO, TWO, set()),
    "two: told from the other": (TWO, replace(TWO, objects=(RIGHT, LEFT)), set()),
    "two: shape": (TWO, two(right=replace(RIGHT, shape="triangle")), {"shape", "binding"}),
    "two: color": (TWO, two(left=replace(LEFT, color="green")), {"color", "binding"}),
    "two: size": (TWO, two(left=replace(LEFT, size="large")), {"size"}),
    "two: sizes swapped": (
        TWO,
        two(replace(LEFT, size="large"), replace(RIGHT, size="small")),
        {"size"},
    ),
    "two: colors swapped": (
        TWO,
        two(replace(LEFT, color="blue"), replace(RIGHT, color="red")),
        {"binding"},
    ),
    "two: places swapped": (
        TWO,
        two(replace(LEFT, x=0.7), replace(RIGHT, x=0.25)),
        {"relation"},
    ),
    "two: shapes tell who is who": (
        TWO,
        two(
            replace(LEFT, color="green", x=0.7, size="large"),
            replace(RIGHT, color="green", x=0.25, size="small"),
        ),
        {"color", "binding", "size", "relation"},
    ),
    "two: on the diagonal": (
        TWO,
        two(replace(LEFT, y=0.25), replace(RIGHT, y=0.7)),
        {"relation"},
    ),
    "two: background": (TWO, replace(TWO, background="white"), {"background"}),
    "two: extra": (TWO, replace(TWO, objects=(LEFT, RIGHT, EXTRA)), {"count"}),
    "two: missing": (
        TWO,
        replace(TWO, objects=(RIGHT,)),
        {"count", "shape", "color", "size", "binding", "relation"},
    ),
}


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(("asked", "shown", "wrong"), CHANGES.values(), ids=CHANGES)
def test_a_change_flips_what_it_changes(
    asked: Scene, shown: Scene, wrong: set[str], side: int
) -> None:
    holds = check(read(render(shown, side)), asked_of(asked))
    assert {word for word, held in holds.items() if not held} == wrong | (
        {"all"} if wrong else set()
    )


def seen(item: Object) -> Seen:
    return Seen(item.shape, item.color, item.size, item.x, item.y, 1.0)


def reading_of(scene: Scene) -> Reading:
    return Reading(scene.background, tuple(seen(item) for item in scene.objects), 0)


def test_malformed_things_spoil_only_the_whole() -> None:
    holds = check(reading_of(TWO)._replace(malformed=1), asked_of(TWO))
    assert [word for word, held in holds.items() if not held] == ["all"]


def test_only_what_is_asked_is_judged() -> None:
    bare = {"shape": "circle", "color": "red", "size": None, "position": None}
    asked: dict[str, Any] = {"background": None, "relation": None, "objects": [bare]}
    assert set(check(reading_of(ONE), asked)) == {"count", "shape", "color", "all"}
    assert set(check(reading_of(ONE), asked | {"background": "gray"})) == {
        *("count", "shape", "color", "all", "background"),
    }
    other = bare | {"color": "blue", "size": "large"}
    pair = asked | {"objects": [bare, other], "relation": "left of"}
    assert set(check(reading_of(TWO), pair)) == {
        *("count", "shape", "color", "size", "binding", "relation", "all"),
    }


def test_relation_needs_the_objects_that_it_relates() -> None:
    strangers = two(
        Object("cross", "green", "small", 0.25, 0.5), Object("triangle", "cyan", "large", 0.7, 0.5)
    )
    assert not check(reading_of(strangers), asked_of(TWO))["relation"]


def test_relation_at_the_bound_survives_a_misread_centroid() -> None:
    dx = 0.4
    edge = two(LEFT, replace(RIGHT, x=LEFT.x + dx, y=LEFT.y + dx * world.UNAMBIGUOUS + 0.003))
    assert check(reading_of(edge), asked_of(TWO))["relation"]


def test_of_the_same_shape_and_color_only_whole_pairs_count() -> None:
    """A red circle beside a blue circle, and the picture is mirrored."""
    pair = two(LEFT, replace(RIGHT, shape="circle"))
    mirrored = two(replace(LEFT, x=0.7), replace(RIGHT, shape="circle", x=0.25))
    holds = check(reading_of(mirrored), asked_of(pair))
    assert holds["binding"]
    assert not holds["relation"]


# --- chance -------------------------------------------------------------------------------------


def test_shuffled_prompts_score_chance() -> None:
    rng = np.random.default_rng(2)
    scenes = [draw_scene(rng, objects=1 + i % 2) for i in range(4000)]
    asked = [describe(scene, rng).asked for scene in scenes]
    scores = judge([reading_of(scene) for scene in scenes], oracle.derange(asked))
    assert scores["count"] == pytest.approx(1 / 2, abs=0.03)
    assert scores["background"] == pytest.approx(1 / 3, abs=0.03)
    assert scores["all"] < 0.01


@pytest.mark.parametrize(("objects", "rounds"), [(1, 8), (2, 14)])
def test_stated_chance_is_that_of_a_model_that_ignores_the_text(objects: int, rounds: int) -> None:
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng, objects=objects, held_out_only=i % 3 == 0) for i in range(2000)]
    bare = [describe(scene, rng).asked for scene in scenes]
    for one in bare:  # leave enough open for chance to be seen
        for item in one["objects"]:
            item["size"] = item["position"] = None
    readings = [reading_of(scene) for scene in scenes]
    found = [judge(readings, bare[shift:] + bare[:shift])["all"] for shift in range(1, rounds + 1)]
    assert np.mean(found) == pytest.approx(np.mean([*map(oracle.chance, bare)]), rel=0.25)


def test_chance_of_a_full_caption() -> None:
    assert oracle.chance(asked_of(ONE)) == pytest.approx(1 / (4 * 6 * 2 * 5 * 3))
    assert oracle.chance(asked_of(TWO)) == pytest.approx(
        2 / (24 * 23) / 2**2 / 3 / len(world.RELATIONS)
    )


def test_no_prompt_meets_itself() -> None:
    for asked in (ASKED[:40] * 3, [one for one in ASKED[:40] for _ in range(4)], ASKED[:2]):
        rolled = oracle.derange(asked)
        assert all(a != b for a, b in zip(asked, rolled, strict=True))
        assert sorted(map(str, rolled)) == sorted(map(str, asked))
        assert rolled == oracle.derange(asked)


def test_shuffled_is_the_score_for_other_prompts() -> None:
    images = to_tensor(RENDERS[32][:60])
    scores = oracle.shuffled(images, ASKED[:60])
    assert scores == oracle.score(images, oracle.derange(ASKED[:60]))
    assert scores["all"] == 0
    assert scores["malformed"] == 0


# --- shares and refusals ------------------------------------------------------------------------


def test_shares_are_over_the_prompts_that_ask() -> None:
    wrong = replace(TWO, background="white")
    scores = judge(
        [reading_of(s) for s in (ONE, TWO, wrong)], [asked_of(s) for s in (ONE, TWO, TWO)]
    )
    assert scores["all"] == pytest.approx(2 / 3)
    assert scores["all/one"] == 1
    assert scores["all/two"] == 1 / 2
    assert scores["relation"] == scores["position"] == 1
    assert "all/two" not in judge([reading_of(ONE)], [asked_of(ONE)])


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="1 images for 2"):
        judge([reading_of(ONE)], [asked_of(ONE)] * 2)
    with pytest.raises(ValueError, match="at least one"):
        judge([], [])
    with pytest.raises(ValueError, match="distinct"):
        oracle.derange([asked_of(ONE)] * 3)
    for image in (np.zeros((32, 32, 3)), np.zeros((3, 32, 32), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            read(image)

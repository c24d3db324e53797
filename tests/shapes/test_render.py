from itertools import product

import numpy as np
import pytest

from salon.shapes import world
from salon.shapes.render import coverage, mask_box, render
from salon.shapes.world import Object, Scene, draw_scene

RESOLUTIONS = (32, 64)
KINDS = [*product(world.SHAPES, world.SIZES)]


def scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, objects=1 + i % 2) for i in range(count)]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize(("shape", "size"), KINDS)
def test_centroid_is_the_place(shape: str, size: str, resolution: int) -> None:
    centers = np.arange(resolution) + 0.5
    for x, y in np.random.default_rng(0).uniform(0.35, 0.65, size=(20, 2)):
        alpha = coverage(shape, world.SIZES[size], x, y, resolution)
        found = alpha.sum(0) @ centers / alpha.sum(), alpha.sum(1) @ centers / alpha.sum()
        np.testing.assert_allclose(found, (x * resolution, y * resolution), atol=0.15)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_size_is_not_a_matter_of_shape(resolution: int) -> None:
    """Areas of one size are alike (the triangle's is the least, 0.70 of the circle's), and the
    least of the large is still twice the greatest of the small, nearly."""
    areas = {
        size: [coverage(shape, radius, 0.5, 0.5, resolution).mean() for shape in world.SHAPES]
        for size, radius in world.SIZES.items()
    }
    for size, radius in world.SIZES.items():
        np.testing.assert_allclose(areas[size][0], np.pi * radius**2, rtol=0.02)
        assert max(areas[size]) / min(areas[size]) < 1.45
    assert min(areas["large"]) / max(areas["small"]) > 1.9


@pytest.mark.parametrize(("shape", "size"), KINDS)
def test_shape_fills_its_box(shape: str, size: str) -> None:
    item = Object(shape, "red", size, 0.5, 0.5)
    box = mask_box(Scene("white", (item,)), 0, 256)
    np.testing.assert_allclose(box, np.array(item.box) * 256, atol=1.5)


def test_mask_box_is_that_of_the_named_object() -> None:
    first, second = (
        Object("square", "red", "small", 0.25, 0.5),
        Object("square", "blue", "large", 0.7, 0.5),
    )
    scene = Scene("white", (first, second), "left of")
    image = render(scene, 64)
    for index, color in enumerate(("red", "blue")):
        left, top, right, bottom = mask_box(scene, index, 64)
        near = np.linalg.norm(image - np.array(world.COLORS[color], float), axis=-1) < 60
        rows, columns = np.nonzero(near)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx(
            [left, top, right, bottom], abs=1
        )


def test_colors_are_those_of_the_palette() -> None:
    scene = Scene("gray", (Object("circle", "cyan", "large", 0.3, 0.6),))
    image = render(scene, 64)
    assert image.dtype == np.uint8
    assert image.shape == (64, 64, 3)
    assert tuple(image[int(0.6 * 64), int(0.3 * 64)]) == world.COLORS["cyan"]
    assert tuple(image[2, 60]) == world.BACKGROUNDS["gray"]


@pytest.mark.parametrize("shape", world.SHAPES)
def test_edges_are_soft_and_thin(shape: str) -> None:
    alpha = coverage(shape, 0.2, 0.503, 0.507, 64)
    between = (alpha > 0.02) & (alpha < 0.98)
    assert between.any(0).sum() > 10
    assert between.mean() < 0.06
    assert alpha.min() == 0
    assert alpha.max() == 1


def test_resolutions_agree() -> None:
    for scene in scenes(60, seed=0):
        fine, coarse = render(scene, 64).astype(float), render(scene, 32).astype(float)
        pooled = fine.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(pooled - coarse).mean() < 1.0
        assert np.abs(pooled - coarse).max() < 80


def test_same_scene_same_bytes() -> None:
    for scene, again in zip(scenes(10, seed=3), scenes(10, seed=3), strict=True):
        assert render(scene, 32).tobytes() == render(again, 32).tobytes()

"""Scenes as pixels: anti-aliased by the signed distance to each shape's edge.

A pixel's coverage is clip(1/2 - d, 0, 1) with d the distance of its centre to the edge in pixels,
which is exact for a straight edge along an axis and within a few percent elsewhere.

R resolution in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salon.shapes.world import BACKGROUNDS, COLORS, EXTENTS, SIZES, Scene

Pixels = NDArray[np.float64]


def coverage(shape: str, radius: float, x: float, y: float, resolution: int) -> Pixels:
    """How much of each pixel the shape covers, (R, R) in [0, 1]; lengths in shares of the side."""
    centers = (np.arange(resolution) + 0.5) / resolution
    dx, dy = centers[None, :] - x, centers[:, None] - y
    distance = _signed_distance(shape, dx / radius, dy / radius) * (radius * resolution)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _signed_distance(shape: str, dx: Pixels, dy: Pixels) -> Pixels:
    """Distance to the edge in radii, negative inside; (dx, dy) from the shape's centroid."""
    if shape == "circle":
        return np.hypot(dx, dy) - 1.0
    if shape == "square":
        half = EXTENTS["square"][0]
        return _box(dx, dy, half, half)
    if shape == "triangle":
        inradius = EXTENTS["triangle"][3]
        slanted = np.sqrt(0.75) * np.abs(dx) - 0.5 * dy
        return np.maximum(dy, slanted) - inradius
    assert shape == "cross", shape
    arm, width = EXTENTS["cross"][0], 0.42
    return np.minimum(_box(dx, dy, arm, width), _box(dx, dy, width, arm))


def _box(dx: Pixels, dy: Pixels, half_width: float, half_height: float) -> Pixels:
    return np.maximum(np.abs(dx) - half_width, np.abs(dy) - half_height)


def render(scene: Scene, resolution: int) -> NDArray[np.uint8]:
    """The scene as (R, R, 3) uint8."""
    image = np.broadcast_to(
        np.array(BACKGROUNDS[scene.background], np.float64), (resolution, resolution, 3)
    )
    for item in scene.objects:
        alpha = coverage(item.shape, SIZES[item.size], item.x, item.y, resolution)[..., None]
        image = image * (1 - alpha) + np.array(COLORS[item.color], np.float64) * alpha
    return np.rint(image).astype(np.uint8)


def mask_box(scene: Scene, index: int, resolution: int) -> list[int]:
    """[left, top, right, bottom] in pixels, right and bottom excluded, of an object's mask."""
    item = scene.objects[index]
    mask = coverage(item.shape, SIZES[item.size], item.x, item.y, resolution) >= 0.5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]

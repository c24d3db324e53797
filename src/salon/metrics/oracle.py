"""An exact jury for pictures of shapes: reads a picture back into a scene, without training.

  border's median -> background      local half-contrast -> blobs      a blob's core -> color
  projection of its pixels on the line from background to color -> soft coverage
  coverage against rendered templates of all shapes and sizes at its centroid -> shape, size

A blob that no template fits, or whose color is none of the palette's, is malformed: it is neither
guessed nor forgotten. So the average of two pictures, which a learned reader accepts, is refused.
Compositions as tuples of attributes, some held out: Okawa et al. 2023, arXiv:2310.09336.

R side of the picture in pixels, W side of the window around a blob, T templates, B blurs. The
x and y of what is read are shares of the side, as in `salon.shapes.world`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from salon.metrics.images import to_uint8
from salon.shapes import world
from salon.shapes.render import coverage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# RGB distance of the border's median to a background. Contrast x0.7 moves white by 64; half of the
# distance from gray to black, 98, is the most that can be told apart.
BACKGROUND_BOUND = 90.0
# RGB distance of a blob's core to its color. Contrast x0.7 moves yellow by 51, and a ghost at half
# opacity lies at least 58 from its color (green, on gray).
COLOR_BOUND = 56.0
# RGB distance up to which a pixel still is what it is near to, the background or its blob's color:
# half of the least contrast, and six sigma of noise of 0.03 of the range.
FAINT = world.MIN_CONTRAST / 2
# An edge lies where the contrast falls to half of the peak within this reach: just less than the
# gap between two objects, so that a strong neighbour does not eat a weak one.
REACH = 0.06
# Summed distance of a blob over least contrast times picture; at 32 px three pixels of least
# contrast, a tenth of the smallest object. What has less is a speck, and ignored.
SPECK = 0.003
# Soft intersection over union with the best template. Clean objects reach .93 at 32 px. The bound
# admits radii off by 15 % and a blur of 1 px at 32 px, and refuses a midway size and halves.
MIN_FIT = 0.72

TEMPLATES = tuple((shape, size) for shape in world.SHAPES for size in world.SIZES)
# Blurs to compare under, as sigma over side: blur rounds the corners of a square, which is then
# nearer to a blurred square than to a circle. Well formed is what fits the sharp template.
BLURS = (0.0, 0.02, 0.04)
# How far the largest template reaches from its centroid.
RADIUS = max(map(max, world.EXTENTS.values())) * max(world.SIZES.values())
# Shares of the picture's area beyond which no template can reach MIN_FIT, with a quarter to spare.
AREAS = [coverage(shape, world.SIZES[size], 0.5, 0.5, 64).mean() for shape, size in TEMPLATES]
SMALLEST, LARGEST = 0.75 * MIN_FIT * min(AREAS), 1.25 / MIN_FIT * max(AREAS)
# How far a centroid may be misread where a relation is just inside its bound: 0.3 px at 32 px.
SLACK = 0.01


class Seen(NamedTuple):
    shape: str
    color: str
    size: str
    x: float
    y: float
    fit: float  # soft IoU with its template, MIN_FIT to 1

    @property
    def position(self) -> str:
        return world.position(self.x, self.y)


class Reading(NamedTuple):
    background: str | None  # None where the border has no color of the palette
    objects: tuple[Seen, ...]
    malformed: int  # blobs that are no object of the world


def read(image: NDArray[np.uint8]) -> Reading:
    """The scene in a picture, (R, R, 3) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape != (len(image), len(image), 3):
        found = f"image is {image.dtype} of shape {image.shape}"
        raise ValueError(f"{found}, but a square (R, R, 3) uint8 was expected: see to_uint8")
    pixels = image.astype(np.float64)  # (R, R, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)  # (3,)
    seen = [_recognise(blob, pixels - ground, ground) for blob in _blobs(pixels - ground)]
    objects = tuple(item for item in seen if item is not None)
    background = _nearest(ground, world.BACKGROUNDS, BACKGROUND_BOUND)
    return Reading(background, objects, len(seen) - len(objects))


def _blobs(offset: Array) -> Iterator[Mask]:
    """Masks (R, R) of the connected regions that stand out; offset from the background."""
    side = len(offset)
    distance = np.linalg.norm(offset, axis=-1)
    peak = ndimage.maximum_filter(distance, size=2 * round(REACH * side) + 1)
    labels, _ = ndimage.label((distance > FAINT) & (distance > peak / 2))
    ink = np.bincount(labels.ravel(), distance.ravel()) / (world.MIN_CONTRAST * side**2)
    for label in np.flatnonzero(ink[1:] > SPECK) + 1:
        yield labels == label


def _recognise(blob: Mask, offset: Array, ground: Array) -> Seen | None:
    """The object that fills this blob, or None where the world has no such object."""
    side, area = len(blob), blob.sum()
    if not SMALLEST <= area / side**2 <= LARGEST:
        return None
    reach = int(np.ceil(RADIUS * side)) + 2
    top, left = (int(at.mean()) - reach for at in np.nonzero(blob))
    blob, offset = (_window(plane, top, left, reach) for plane in (blob, offset))
    if blob.sum() < area:
        return None

    core = ndimage.binary_erosion(blob)
    line = np.median(offset[core if core.any() else blob], axis=0)  # (3,) background to color
    color = _nearest(ground + line, world.COLORS, COLOR_BOUND)
    if color is None:
        return None
    # The blob ends at half opacity: its anti-aliased rim lies just outside.
    around = ndimage.binary_dilation(blob, iterations=max(1, round(REACH * side / 2)))
    opacity = np.clip(offset @ line / (line @ line), 0, 1) * around  # (W, W)
    stray = around & (np.linalg.norm(offset - opacity[..., None] * line, axis=-1) > FAINT)
    at = np.arange(len(blob)) + 0.5
    x, y = (float(opacity.sum(axis) @ at / opacity.sum()) for axis in (0, 1))  # pixels

    # What has another color adds to the union, and to no intersection.
    fits = _fits(opacity * ~stray, np.where(stray, 1.0, opacity), x, y, side)  # (B, T)
    best = int(fits.max(0).argmax())
    shape, size = TEMPLATES[best]
    fit = float(fits[0, best])
    if fit < MIN_FIT:
        return None
    return Seen(shape, color, size, (left + x) / side, (top + y) / side, fit)


def _window(plane: NDArray[Any], top: int, left: int, reach: int) -> NDArray[Any]:
    """(W, W, ...) from (top, left) on, W = 2 reach + 1; zero beyond the picture's border."""
    padding = ((reach, reach), (reach, reach), (0, 0))[: plane.ndim]
    return np.pad(plane, padding)[top + reach :, left + reach :][: 2 * reach + 1, : 2 * reach + 1]


def _fits(shown: Array, inked: Array, x: float, y: float, side: int) -> Array:
    """Soft IoU of a coverage (W, W) with each blur of each template around (x, y), (B, T)."""
    width = len(shown)
    radii = [(shape, world.SIZES[size] * side / width) for shape, size in TEMPLATES]
    sharp = np.stack([coverage(*it, x / width, y / width, width) for it in radii])  # (T, W, W)
    fits = []
    for blur in BLURS:
        soft = ndimage.gaussian_filter(sharp, (0, blur * side, blur * side), truncate=2.5)
        meet, join = np.minimum(shown, soft), np.maximum(inked, soft)
        fits.append(meet.sum((1, 2)) / join.sum((1, 2)))
    return np.array(fits)


def _nearest(rgb: Array, palette: dict[str, tuple[int, int, int]], bound: float) -> str | None:
    distances = np.linalg.norm(np.array(list(palette.values())) - rgb, axis=1)
    best = int(distances.argmin())
    return list(palette)[best] if distances[best] <= bound else None


def check(reading: Reading, asked: dict[str, Any]) -> dict[str, bool]:
    """Which of the asked attributes hold; see `salon.shapes.captions.Caption.asked`.

    `shape`, `color`: each that is asked is there, on whichever object. `binding`, where there are
    two objects to confuse: on the same. `size`, `position`, `relation`: of the best assignment of
    seen to asked; a relation needs both objects right in shape or color. `all`: everything holds,
    and there is nothing else.
    """
    seen, objects = reading.objects, asked["objects"]
    padded = seen + (None,) * (len(objects) - len(seen))
    orders = permutations(padded, len(objects))
    matches = [tuple(zip(order, objects, strict=True)) for order in orders]
    match = max(matches, key=lambda match: _merit(match, asked["relation"]))

    holds = {"count": len(seen) == len(objects)}
    if asked["background"] is not None:
        holds["background"] = reading.background == asked["background"]
    for word in ("shape", "color"):
        holds[word] = Counter(o[word] for o in objects) <= Counter(getattr(s, word) for s in seen)
    for word in ("size", "position"):
        if held := _held(match, word):
            holds[word] = all(held)
    if len(objects) > 1:
        holds["binding"] = all(_held(match, "shape") + _held(match, "color"))
    if asked["relation"] is not None:
        holds["relation"] = _related(match, asked["relation"])
    holds["all"] = all(holds.values()) and reading.malformed == 0
    return holds


Match = tuple[tuple[Seen | None, dict[str, Any]], ...]  # each asked object's answer, if any


def _held(match: Match, word: str) -> list[bool]:
    """Whether each object that is asked for an attribute has it."""
    return [s is not None and getattr(s, word) == o[word] for s, o in match if o[word] is not None]


def _merit(match: Match, relation: str | None) -> tuple[int, ...]:
    """Whole objects first; then shapes, which are harder to mistake than colors; then the rest."""
    shapes, colors = _held(match, "shape"), _held(match, "color")
    rest = sum(_held(match, "size") + _held(match, "position"))
    rest += relation is not None and _related(match, relation)
    return sum(a and b for a, b in zip(shapes, colors, strict=True)), sum(shapes), sum(colors), rest


def _related(match: Match, asked: str) -> bool:
    (first, a), (second, b) = match
    if first is None or second is None:
        return False
    if any(s.shape != o["shape"] and s.color != o["color"] for s, o in ((first, a), (second, b))):
        return False
    dx, dy = first.x - second.x, first.y - second.y
    near = [float(np.sign(d) * max(abs(d) - SLACK, 0)) for d in (dx, dy)]
    return asked in (world.relation(dx, near[1], 0, 0), world.relation(near[0], dy, 0, 0))


def score(images: Tensor, asked: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Shares over images (N, 3, R, R) in [-1, 1] and what each was asked to show.

    An attribute's share is over the prompts that ask for it, that of `all/one` and `all/two` over
    those with so many objects, `malformed` over all images.
    """
    return judge(read_all(images), asked)


def read_all(images: Tensor) -> list[Reading]:
    """The scenes in images (N, 3, R, R) in [-1, 1]."""
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()  # (N, R, R, 3)
    return [read(image) for image in pixels]


def shuffled(images: Tensor, asked: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The score by chance: that of the same images for other prompts, see `derange`. It keeps what
    the model likes to draw: a model that ignores its text scores just this."""
    return score(images, derange(asked))


def judge(readings: Sequence[Reading], asked: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`score`, of pictures that were read already."""

    def judged(reading: Reading, wanted: dict[str, Any]) -> dict[str, bool]:
        holds = check(reading, wanted)
        holds["all/one" if len(wanted["objects"]) == 1 else "all/two"] = holds["all"]
        return holds

    told = gathered(readings, asked, judged)
    return {name: sum(held) / len(held) for name, held in told.items()}


def gathered(
    readings: Sequence[Reading],
    asked: Sequence[dict[str, Any]],
    judged: Callable[[Reading, dict[str, Any]], dict[str, bool]],
) -> dict[str, list[bool]]:
    """By name, what is judged of each picture; and of all whether something is `malformed`.

    Raises ValueError where there is not one reading for each prompt, or none.
    """
    if len(readings) != len(asked) or not asked:
        found = f"{len(readings)} images for {len(asked)} prompts"
        raise ValueError(f"{found}: one image for each, and at least one, was expected")
    told: dict[str, list[bool]] = {}
    for reading, wanted in zip(readings, asked, strict=True):
        held = judged(reading, wanted) | {"malformed": reading.malformed > 0}
        for name, one in held.items():
            told.setdefault(name, []).append(one)
    return dict(sorted(told.items()))


def derange(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each prompt the next in a fixed random circle of all that differ: so no prompt meets
    itself, however often and in whatever order the prompts come."""
    names = [json.dumps(wanted, sort_keys=True) for wanted in asked]
    distinct = dict(zip(names, asked, strict=True))
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} distinct prompts: at least 2 are needed to shuffle them")
    circle = [list(distinct)[i] for i in np.random.default_rng(0).permutation(len(distinct))]
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [distinct[following[name]] for name in names]


def chance(asked: dict[str, Any]) -> float:
    """How often `all` holds for a picture of the right number of objects that ignores the text,
    drawn from the whole world, held-out compositions included, as if all its words were equally
    likely (in truth the rules against overlap favor small objects in pairs)."""
    kinds = len(world.SHAPES) * len(world.COLORS)
    choices = [("size", world.SIZES), ("position", world.POSITIONS)]
    share = 1.0
    for item in asked["objects"]:
        share /= kinds * math.prod(len(words) for key, words in choices if item[key] is not None)
    if len(asked["objects"]) == 2:  # either may be drawn first, and two alike are never drawn
        share *= 2 * kinds / (kinds - 1)
    share /= len(world.BACKGROUNDS) if asked["background"] is not None else 1
    return share / (len(world.RELATIONS) if asked["relation"] is not None else 1)


def asked_of(scene: world.Scene) -> dict[str, Any]:
    """Every attribute of a scene, as if a caption had asked for it; a place for a lone object only,
    since in a pair it may lie where two words meet."""
    lone = len(scene.objects) == 1
    objects = [
        {
            "shape": o.shape,
            "color": o.color,
            "size": o.size,
            "position": o.position if lone else None,
        }
        for o in scene.objects
    ]
    return {"background": scene.background, "relation": scene.relation, "objects": objects}

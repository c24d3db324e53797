"""Images as files that people look at: captioned grids, and PNGs that say where they come from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from salon.metrics.images import to_uint8

LEAST_SIDE = 128  # pixels; smaller images are enlarged, whole pixels at a time, to be looked at
GAP, FONT_SIZE, LINES = 6, 11, 4
LINE = FONT_SIZE + 2  # pixels from one line to the next


def to_pil(images: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1] to N pictures."""
    pixels = to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def grid(images: Tensor, captions: Sequence[str], *, columns: int) -> Image.Image:
    """A sheet of images (N, 3, H, W) in [-1, 1], row by row, each over its caption."""
    pictures = to_pil(images)
    side = shown_side(pictures[0].width)
    wrapped = [wrap(caption, side) for caption in captions]
    text = max(map(len, wrapped), default=0) * LINE
    rows = -(-len(pictures) // columns)
    cell = (side + GAP, side + text + GAP)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), (255, 255, 255))
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        x, y = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        write(sheet, lines, x, y + side + 1)
    return sheet


def table(rows: Sequence[tuple[str, Tensor]], captions: Sequence[str]) -> Image.Image:
    """A sheet with a named row of images (N, 3, H, W) in [-1, 1] for each of `rows`, whose sizes
    may differ, and over their N columns the captions."""
    side = shown_side(max(images.shape[-1] for _, images in rows))
    wrapped = [wrap(caption, side) for caption in captions]
    names = [wrap(name, side) for name, _ in rows]
    top = max(map(len, wrapped), default=0) * LINE + GAP
    size = ((len(captions) + 1) * (side + GAP) + GAP, len(rows) * (side + GAP) + top + GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for i, lines in enumerate(wrapped, 1):
        write(sheet, lines, GAP + i * (side + GAP), GAP)
    for j, (_, images) in enumerate(rows):
        y = top + GAP + j * (side + GAP)
        write(sheet, names[j], GAP, y + (side - len(names[j]) * LINE) // 2)
        for i, picture in enumerate(to_pil(images), 1):
            large = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (GAP + i * (side + GAP), y))
    return sheet


def shown_side(side: int) -> int:
    """Pixels on a sheet for an image of `side` pixels."""
    return side * max(1, LEAST_SIDE // side)


def wrap(text: str, width: int) -> list[str]:
    """The lines of a caption beside an image `width` pixels wide."""
    # Characters that fit: the default font is at most 0.6 of its size wide.
    return textwrap.wrap(text, max(8, int(width / (0.52 * FONT_SIZE))))[:LINES]


def write(sheet: Image.Image, lines: Sequence[str], x: int, y: int) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, words in enumerate(lines):
        pen.text((x, y + i * LINE), words, fill=(40, 40, 40), font=font)


def save_png(image: Image.Image, path: Path, provenance: Mapping[str, object]) -> None:
    """With `provenance` as text chunks, which image viewers show."""
    info = PngInfo()
    for key, value in provenance.items():
        info.add_itxt(key, str(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", pnginfo=info)

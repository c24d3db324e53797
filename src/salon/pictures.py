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


def to_pil(images: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1] to N pictures."""
    pixels = to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def grid(images: Tensor, captions: Sequence[str], *, columns: int) -> Image.Image:
    """A sheet of images (N, 3, H, W) in [-1, 1], row by row, each over its caption."""
    pictures = to_pil(images)
    zoom = max(1, LEAST_SIDE // pictures[0].width)
    side = pictures[0].width * zoom
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 2
    # Characters that fit: the default font is at most 0.6 of its size wide.
    wrapped = [
        textwrap.wrap(caption, max(8, int(side / (0.52 * FONT_SIZE))))[:LINES]
        for caption in captions
    ]
    text = max((len(lines) for lines in wrapped), default=0) * line
    rows = -(-len(pictures) // columns)
    cell = (side + GAP, side + text + GAP)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        x, y = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        for j, words in enumerate(lines):
            pen.text((x, y + side + 1 + j * line), words, fill=(40, 40, 40), font=font)
    return sheet


def save_png(image: Image.Image, path: Path, provenance: Mapping[str, object]) -> None:
    """With `provenance` as text chunks, which image viewers show."""
    info = PngInfo()
    for key, value in provenance.items():
        info.add_itxt(key, str(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", pnginfo=info)

"""Untrusted picture bytes to pixels: the header is judged first, then the picture is decoded.

The content says the format, not the name of the file. What is wrong with the bytes is raised as
`Bad`; what is wrong with the program is raised as it is.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from salon.data.reasons import Bad
from salon.data.settings import number

# All that Pillow raises on broken pictures. Two hundred thousand mutated JPEG, PNG and WebP files
# raised no more; OSError includes UnidentifiedImageError, and ValueError UnicodeDecodeError. They
# are caught around Pillow's opening and loading alone: the same errors from our own arithmetic
# come through, and TypeError, MemoryError and the like come through from everywhere.
UNREADABLE = (OSError, SyntaxError, ValueError)
# Pillow warns beyond MAX_IMAGE_PIXELS and raises beyond twice that. The warning is an exception
# where the filters say so; it is caught as one, since changing filters is not safe with threads.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFFWEBP"}
# A progressive JPEG has about ten scans, and each goes over the whole picture: a thousand in 31 KB
# take as long as a thousand pictures.
MAX_SCANS = 100
SEQUENTIAL = (b"\xc0", b"\xc1")  # JPEG's frames whose scans may hold all components at once
GAP = 3.0  # what is left to bicubic after reduction by a whole number: indistinguishable from all
TURNS = {  # EXIF orientation -> what shows the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRules(NamedTuple):
    """Which pictures are wanted: `data.image` of the config."""

    formats: tuple[str, ...]  # Pillow's names: ("JPEG", "PNG", "WEBP")
    max_pixels: int  # and never more than Image.MAX_IMAGE_PIXELS, beyond which Pillow warns
    min_side: int  # pixels, of the picture as it is shown (EXIF applied)
    max_aspect: float  # longer side / shorter side, at most
    animated: str  # "first" frame, or "reject"


def make_rules(
    *, formats: Sequence[str], max_pixels: int, min_side: int, max_aspect: float, animated: str
) -> ImageRules:
    """Raises ValueError that names data.image and the setting."""
    Image.init()
    if not formats or isinstance(formats, str) or not {f.upper() for f in formats} <= {*Image.OPEN}:
        raise ValueError(
            f"data.image.formats={formats!r}: expected a list of Pillow's names, such as "
            "[JPEG, PNG, WEBP]"
        )
    number("data.image.max_pixels", max_pixels, least=1, whole=True)
    number("data.image.min_side", min_side, least=1, whole=True)
    number("data.image.max_aspect", max_aspect, least=1)
    if animated not in ("first", "reject"):
        raise ValueError(f"data.image.animated={animated!r}: expected first or reject")
    return ImageRules(tuple(formats), max_pixels, min_side, max_aspect, animated)


class Header(NamedTuple):
    width: int  # as shown: EXIF orientation applied
    height: int
    format: str


def header(data: bytes, rules: ImageRules) -> Header:
    """Raises Bad where the picture is refused; its pixels are not decoded."""
    return _opened(data, rules)[1]


def decode(
    data: bytes,
    rules: ImageRules,
    *,
    size: tuple[int, int],  # (width, height)
    crop: str,  # "center" or "random"
    chance: np.random.Generator | None,  # where a random crop lies
) -> NDArray[np.uint8]:  # (H, W, 3)
    """Scales the picture, bicubic and antialiased, until it covers `size`, and cuts that out.

    Raises Bad where the picture is refused by its header, and where it cannot be decoded.
    """
    assert crop == "center" or (crop == "random" and chance is not None), crop
    image, shown, orientation = _opened(data, rules)
    # A JPEG is decoded at 1/2, 1/4 or 1/8 where twice the size is left to resize.
    wanted = (2 * size[0], 2 * size[1])
    width = image.width
    drafted = image.draft(None, wanted[::-1] if orientation >= 5 else wanted)
    fraction = width / drafted[1][2] if drafted else 1.0
    if shown.format == "PNG":
        _check_png(data)
    elif shown.format == "JPEG":
        _check_jpeg(data)
    try:
        image.load()
    except UNREADABLE as error:
        raise Bad("image_corrupt", f"{shown.format}: {error}") from error
    # A PNG's header tells the bits of a sample; of the others all have 8.
    image = _to_color(image, depth=data[24] if shown.format == "PNG" else 8)
    if orientation > 1:
        image = image.transpose(TURNS[orientation])
    box = _box(shown, size, None if crop == "center" else chance)
    return _cut(image, size, tuple(edge / fraction for edge in box))


def _opened(data: bytes, rules: ImageRules) -> tuple[Image.Image, Header, int]:
    """The picture, not yet decoded; its header; its EXIF orientation, 1 to 8."""
    if not data:
        raise Bad("image_empty", "no bytes")
    # A phone's MPO is a JPEG with more pictures behind it, which are no frames of a film. Pillow
    # opens it under the name of JPEG.
    kinds = tuple(kind.upper() for kind in rules.formats if kind.upper() != "MPO")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=kinds)
    except BOMBS as error:
        raise Bad("image_too_large", f"Pillow refuses it: {error}") from error
    except UNREADABLE as error:
        if any(_begins_as(data, kind) for kind in kinds):
            raise Bad("image_corrupt", f"in the header: {error}") from error
        raise Bad("image_unrecognised", f"none of {', '.join(kinds)}") from error
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    orientation = _orientation(image, data)
    sides = image.size[::-1] if orientation >= 5 else image.size
    found = Header(*sides, kind)
    moves = kind != "JPEG" and getattr(image, "is_animated", False)
    _judge(found, moves, rules)
    return image, found, orientation


def _judge(found: Header, moves: bool, rules: ImageRules) -> None:
    size = f"{found.width}x{found.height}"
    limit = min(rules.max_pixels, Image.MAX_IMAGE_PIXELS or rules.max_pixels)
    short, long = sorted((found.width, found.height))
    if short * long > limit:
        raise Bad("image_too_large", f"{size} is over {limit:,} pixels")
    if short < rules.min_side:
        raise Bad("image_too_small", f"{size} has a side under {rules.min_side}")
    if long > rules.max_aspect * short:
        raise Bad("image_aspect", f"{size} is over {rules.max_aspect:g}:1")
    if moves and rules.animated == "reject":
        raise Bad("image_animated", f"{found.format} of more than one frame")


def _begins_as(data: bytes, kind: str) -> bool:
    """Whether this is the beginning of such a file, be it cut off within its first bytes."""
    magic = MAGIC.get(kind)
    if magic is None:
        return False
    if kind == "WEBP":
        data = data[:4] + data[8:12]  # the length stands between
    return data[: len(magic)] == magic[: len(data)]


def _orientation(image: Image.Image, data: bytes) -> int:
    """1 where there is no EXIF, and where it is broken: that is no reason to lose the picture."""
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
        # It may stand behind the pixels.
        late = next((data[a:b] for kind, a, b in _chunks(data) if kind == b"eXIf"), None)
        if late is not None:
            image.info["exif"] = late
    try:
        # Not image.getexif(): to look behind the pixels, that of a PNG decodes them.
        told = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (*UNREADABLE, struct.error):
        return 1
    return int(told) if told in TURNS else 1


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin and end of what is in it) of every chunk that is there with its checksum."""
    place = 8
    while place + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if place + 12 + length > len(png):
            return
        yield kind, place + 8, place + 8 + length
        place += 12 + length


def _check_png(data: bytes) -> None:
    """Pillow reads no checksum of pixels, and does not miss what is cut off behind them."""
    view = memoryview(data)
    for kind, begin, end in _chunks(data):
        told = int.from_bytes(data[end : end + 4], "big")
        if zlib.crc32(view[begin - 4 : end]) != told:
            raise Bad("image_corrupt", f"PNG: wrong checksum of {kind!r} at byte {begin - 8}")
        if kind == b"IEND":
            return
    raise Bad("image_corrupt", "PNG: cut off before its end")


def _check_jpeg(data: bytes) -> None:
    """Pillow does not always miss the mark of the end, and would decode any number of scans."""
    begin, frame = 2, 0
    while data[begin : begin + 1] == b"\xff" and data[begin + 1 : begin + 2] != b"\xda":
        filled = data[begin + 1 : begin + 2] == b"\xff"  # before a marker there may be more
        frame = begin if data[begin + 1 : begin + 2] in SEQUENTIAL else frame
        begin += 1 if filled else 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    # Where the only frame is sequential and its first scan has all components, no other scan is
    # decoded; what remains is the mark of the end, most often the last two bytes.
    if frame and data[begin + 4 : begin + 5] == data[frame + 9 : frame + 10]:
        if data.rfind(b"\xff\xd9", begin) < 0:
            raise Bad("image_corrupt", "JPEG: cut off before its end")
        return
    # In what is coded these two bytes do not occur; in a thumbnail, before it, they do.
    end = data.find(b"\xff\xd9", begin)
    if end < 0:
        raise Bad("image_corrupt", "JPEG: cut off before its end")
    if (scans := data.count(b"\xff\xda", begin, end)) > MAX_SCANS:
        raise Bad("image_corrupt", f"JPEG: {scans:,} scans")


def _to_color(image: Image.Image, depth: int) -> Image.Image:
    """RGB, or RGBA where it is transparent; from all modes, at their full brightness."""
    info = image.info
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips them to white
        values = np.asarray(image)
        gray = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
        if "transparency" not in info:
            return gray.convert("RGB")
        alpha = Image.fromarray(np.where(values == info["transparency"], 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (gray, gray, gray, alpha))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    # The transparent color is told in the file's own depth, and Pillow's pixels have 8 bits.
    if image.mode == "L" and depth in (2, 4):
        info["transparency"] *= 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        info["transparency"] = tuple(value >> 8 for value in info["transparency"])
    return image.convert("RGBA")


def _box(
    shown: Header, size: tuple[int, int], chance: np.random.Generator | None
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest part with the proportions of `size`.

    It begins at a whole pixel, so that a picture that need not be scaled keeps its pixels.
    """
    width, height = float(shown.width), float(shown.height)
    if size[0] * shown.height >= size[1] * shown.width:
        height = shown.width * size[1] / size[0]
    else:
        width = shown.height * size[0] / size[1]
    room = int(shown.width - width), int(shown.height - height)
    if chance is None:
        left, top = room[0] // 2, room[1] // 2
    else:
        left, top = chance.integers(0, room, endpoint=True).tolist()
    return left, top, left + width, top + height


def _cut(image: Image.Image, size: tuple[int, int], box: tuple[float, ...]) -> NDArray[np.uint8]:
    left, top, right, bottom = box
    if (right - left, bottom - top) == size:
        if image.size != size:
            image = image.crop((int(left), int(top), int(right), int(bottom)))
    else:
        image = image.resize(
            size, Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=GAP
        )
    if image.mode == "RGBA":
        white = Image.new("RGBA", size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return np.array(image)

"""Pictures of every kind and damage, against pixels that were made or decoded another way."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from salon.data.image import MAX_SCANS, Header, ImageRules, _to_color, decode, header
from salon.data.reasons import Bad
from tars import encode, noise

RULES = ImageRules(
    formats=("JPEG", "PNG", "WEBP"),
    max_pixels=10**6,
    min_side=1,
    max_aspect=100.0,
    animated="first",
)
Pixels = NDArray[np.int64]
WHITE = np.array([255, 255, 255])


def read(data: bytes, size: tuple[int, int] | None = None, **rules: Any) -> Pixels:
    """Without `size` as large as it is."""
    wanted = RULES._replace(**rules)
    size = size or header(data, wanted)[:2]
    pixels = decode(data, wanted, size=size, crop="center", chance=None)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.flags.writeable
    return pixels.astype(int)


def reason(data: bytes, **rules: Any) -> str:
    with pytest.raises(Bad) as caught:
        decode(data, RULES._replace(**rules), size=(8, 8), crop="center", chance=None)
    return caught.value.reason


def psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean())))


def photo(width: int, height: int) -> Image.Image:
    """Gradients and some grain: what JPEG is good at."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * 9), np.cos(y / height * 7), np.sin((x + y) / width * 5)]
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((128 + 100 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(
    width: int, height: int, depth: int, color: int, rows: bytes, before: bytes = b"",
    after: bytes = b"",
) -> bytes:  # fmt: skip
    """A PNG of these rows, each of which begins with its filter."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + first + before + pixels + after + chunk(b"IEND", b"")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def marker(jpeg: bytes, kind: int) -> tuple[int, int]:
    """Where the first such segment begins and ends."""
    begin = jpeg.index(bytes([0xFF, kind]))
    return begin, begin + 2 + int.from_bytes(jpeg[begin + 2 : begin + 4], "big")


# -- which colors it has -----------------------------------------------------------------------

COLORS = np.asarray(noise(1, 12, 10)).astype(int)
GRAY = COLORS[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_are_kept(kind: str) -> None:
    assert np.array_equal(read(encode(noise(1, 12, 10), kind, lossless=True)), COLORS)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", [False, True])
def test_gray_of_few_bits_reaches_white(depth: int, clear: bool) -> None:
    """With `clear`, one of its values is told to be transparent."""
    values = np.arange(8) % 2**depth
    bits = ((values[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8)
    row = b"\0" + np.packbits(bits).tobytes()
    key = 2**depth // 2
    before = chunk(b"tRNS", struct.pack(">H", key)) if clear else b""
    expected = values * 255 // (2**depth - 1)
    if clear:
        expected[values == key] = 255
    pixels = read(png(8, 1, depth, 0, row, before))
    assert np.array_equal(pixels, np.repeat(expected[None, :, None], 3, axis=2))


def test_sixteen_bits_keep_their_brightness() -> None:
    values = np.linspace(0, 65535, 120).astype(">u2").reshape(10, 12)
    expected = np.repeat((values >> 8).astype(int)[..., None], 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    assert np.array_equal(read(png(12, 10, 16, 0, rows)), expected)
    in_color = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in values)
    assert np.array_equal(read(png(12, 10, 16, 2, in_color)), expected)


def test_a_transparent_value_of_sixteen_bits_is_found() -> None:
    key, near = 0x1234, 0x5634
    for color, samples in ((0, 1), (2, 3)):
        row = b"\0" + struct.pack(">H", key) * samples + struct.pack(">H", near) * samples
        before = chunk(b"tRNS", struct.pack(">H", key) * samples)
        assert read(png(2, 1, 16, color, row, before)).tolist() == [[[255] * 3, [0x56] * 3]]


def test_modes_that_only_other_formats_have() -> None:
    whole = Image.fromarray(np.array([[0, 129 << 8, 65535, 10**6, -5]], np.int32))
    assert whole.mode == "I"
    gray = [0, 129, 255, 255, 0]
    assert np.asarray(_to_color(whole, 8))[0].tolist() == [[v] * 3 for v in gray]
    real = Image.fromarray(np.array([[0, 129, 300]], np.float32))
    assert real.mode == "F"
    assert np.asarray(_to_color(real, 8))[0].tolist() == [[v] * 3 for v in (0, 129, 255)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P", "WEBP"])
def test_transparency_stands_on_white(mode: str) -> None:
    color = COLORS if mode in ("RGBA", "WEBP") else np.repeat(GRAY[..., None], 3, axis=2)
    alpha = np.random.default_rng(5).integers(0, 256, (10, 12))
    kind, options = "PNG", {}
    if mode == "RGB":  # one color is told to be transparent
        alpha = np.where(GRAY - GRAY[0, 0], 255, 0)
        image = Image.fromarray(color.astype(np.uint8))
        options = {"transparency": tuple(color[0, 0].tolist())}
    elif mode == "P":  # every gray has an alpha of its own
        table = np.random.default_rng(6).integers(0, 256, 256)
        alpha = table[GRAY]
        image = Image.fromarray(GRAY.astype(np.uint8)).convert("P")
        options = {"transparency": bytes(table.tolist())}
    else:
        image = Image.fromarray(np.dstack([color, alpha]).astype(np.uint8))
        image = image.convert("LA") if mode == "LA" else image
        kind, options = ("WEBP", {"lossless": True}) if mode == "WEBP" else (kind, options)
    share = alpha[..., None] / 255
    expected = color * share + 255 * (1 - share)
    assert np.abs(read(encode(image, kind, **options)) - expected).max() <= 1


def test_what_is_transparent_lends_no_color_when_it_is_scaled() -> None:
    half = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    half.paste((200, 0, 0, 255), (0, 0, 33, 64))
    on_white = Image.new("RGB", (64, 64), "white")
    on_white.paste((200, 0, 0), (0, 0, 33, 64))
    expected = np.asarray(on_white.resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(read(encode(half), (8, 8)) - expected).max() <= 2


def test_cmyk_jpegs() -> None:
    """As Adobe writes them: inverted, with a marker or without it, and as YCCK."""
    inks = np.asarray(photo(48, 40)).astype(int)
    black = np.broadcast_to(np.linspace(0, 200, 48).astype(int)[:, None], (40, 48, 1))
    expected = (255 - inks) * (255 - black) / 255
    image = Image.merge("CMYK", Image.fromarray(np.dstack([inks, black]).astype(np.uint8)).split())
    plain = encode(image, "JPEG", quality=95, subsampling=0)
    begin, end = marker(plain, 0xEE)
    assert plain[begin + 4 : end].startswith(b"Adobe")
    # Inverted inks are a picture of light: as YCbCr that is what the decoder turns back.
    light = Image.fromarray(inks.astype(np.uint8)).convert("YCbCr").split()
    ycck = Image.merge("CMYK", [Image.eval(band, lambda v: 255 - v) for band in light] + [
        Image.fromarray(black[..., 0].astype(np.uint8))
    ])  # fmt: skip
    bytes_of_ycck = bytearray(encode(ycck, "JPEG", quality=95, subsampling=0))
    bytes_of_ycck[end - 1] = 2  # Adobe's transform
    for data in (plain, plain[:begin] + plain[end:], bytes(bytes_of_ycck)):
        pixels = read(data)
        assert np.abs(pixels.mean((0, 1)) - expected.mean((0, 1))).max() < 2
        assert psnr(pixels, expected) > 30


def test_gray_and_progressive_jpegs() -> None:
    expected = np.asarray(photo(48, 40))
    gray = np.repeat(np.asarray(photo(48, 40).convert("L"))[..., None], 3, axis=2)
    assert psnr(read(encode(photo(48, 40).convert("L"), "JPEG", quality=95)), gray) > 34
    data = encode(photo(48, 40), "JPEG", quality=95, subsampling=0, progressive=True)
    assert psnr(read(data), expected) > 34


# -- how it is shown ---------------------------------------------------------------------------

SHOWN = {
    1: COLORS, 2: COLORS[:, ::-1], 3: COLORS[::-1, ::-1], 4: COLORS[::-1],
    5: COLORS.swapaxes(0, 1), 6: np.rot90(COLORS, -1),
    7: COLORS[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(COLORS),
}  # fmt: skip


@pytest.mark.parametrize("orientation", list(SHOWN))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "late"])
def test_the_orientation_of_the_camera_is_honoured(orientation: int, kind: str) -> None:
    exif = turned(orientation)
    if kind == "late":  # behind the pixels
        data = encode(noise(1, 12, 10))
        data = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    else:
        data = encode(noise(1, 12, 10), kind, lossless=True, exif=exif)
    expected = SHOWN[orientation]
    found = header(data, RULES)
    assert found == (expected.shape[1], expected.shape[0], "WEBP" if kind == "WEBP" else "PNG")
    assert np.array_equal(read(data), expected)


def test_sizes_and_crops_are_those_of_the_picture_as_it_is_shown() -> None:
    image = photo(400, 200)
    data = encode(image, "JPEG", quality=95, exif=turned(6))
    assert header(data, RULES) == Header(200, 400, "JPEG")
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = upright.resize((20, 10), Image.Resampling.BICUBIC, box=(0, 150, 200, 250))
    assert psnr(read(data, (20, 10)), np.asarray(expected).astype(int)) > 36
    for orientation, size in ((1, (20, 10)), (6, (10, 20))):
        data = encode(noise(1, 20, 10), exif=turned(orientation))
        assert header(data, RULES)[:2] == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0no TIFF at all", turned(9).tobytes()]
)
def test_broken_exif_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    data = encode(noise(1, 12, 10), kind, exif=exif)
    assert header(data, RULES) == (12, 10, kind)
    assert read(data).shape == (10, 12, 3)


def test_a_phones_mpo_is_a_jpeg_of_one_frame() -> None:
    first, second = photo(64, 48), noise(0, 64, 48)
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    for formats in (("JPEG",), ("JPEG", "MPO"), ("MPO", *RULES.formats), RULES.formats):
        rules = {"formats": formats, "animated": "reject"}
        assert header(data, RULES._replace(**rules)) == (64, 48, "JPEG")
        assert psnr(read(data, **rules), np.asarray(first).astype(int)) > 30
        assert read(data, (8, 8), **rules).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_or_nothing(kind: str) -> None:
    frames = [noise(seed, 12, 10) for seed in (1, 2, 3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read(data), COLORS)
    assert reason(data, animated="reject") == "image_animated"
    still = encode(frames[0], kind, lossless=True)
    assert np.array_equal(read(still, animated="reject"), COLORS)


# -- scaling and cropping ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("sides", [(96, 80), (255, 257), (640, 481), (1001, 997)])
@pytest.mark.parametrize("size", [(64, 64), (24, 40)])
def test_it_looks_like_the_full_picture_scaled(
    kind: str, sides: tuple[int, int], size: tuple[int, int]
) -> None:
    data = encode(photo(*sides), kind, **({"quality": 92} if kind == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as image:
        full = image.convert("RGB")
    scale = max(size[0] / sides[0], size[1] / sides[1])
    width, height = size[0] / scale, size[1] / scale
    left, top = int(sides[0] - width) // 2, int(sides[1] - height) // 2
    box = (left, top, min(left + width, sides[0]), min(top + height, sides[1]))
    expected = np.asarray(full.resize(size, Image.Resampling.BICUBIC, box=box)).astype(int)
    assert psnr(read(data, size, max_pixels=2 * 10**6), expected) > 40


def test_every_pair_of_sizes_is_covered() -> None:
    for width in range(1, 40, 3):
        for height in range(1, 40, 3):
            data = encode(Image.new("L", (width, height), 7), compress_level=0)
            assert (read(data, (11, 7)) == 7).all()
    for side in (1, 7, 9, 17, 33, 100):
        data = encode(Image.new("L", (side, 3 * side), 7), "JPEG")
        for size in ((1, 1), (2, 1), (8, 8), (50, 20)):
            assert np.abs(read(data, size) - 7).max() <= 1


def test_a_crop_that_need_not_be_scaled_keeps_its_pixels() -> None:
    data = encode(noise(1, 12, 10))
    assert np.array_equal(read(data, (12, 5)), COLORS[2:7])
    assert np.array_equal(read(data, (9, 10)), COLORS[:, 1:10])


def test_a_random_crop_lies_where_chance_has_it() -> None:
    data = encode(noise(1, 12, 10))
    windows = {COLORS[:, x : x + 9].tobytes(): x for x in range(4)}

    def place(chance: np.random.Generator) -> int:
        pixels = decode(data, RULES, size=(9, 10), crop="random", chance=chance)
        return windows[pixels.astype(int).tobytes()]

    chance = np.random.default_rng(0)
    places = [place(chance) for _ in range(60)]
    assert set(places) == {0, 1, 2, 3}
    again = np.random.default_rng(0)
    assert [place(again) for _ in range(60)] == places
    with pytest.raises(AssertionError):
        decode(data, RULES, size=(9, 10), crop="random", chance=None)
    center = decode(data, RULES, size=(9, 10), crop="center", chance=chance)
    assert np.array_equal(center, COLORS[:, 1:10])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_twice_the_size_at_least(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[int, int]] = []
    load = JpegImagePlugin.JpegImageFile.load
    spy = lambda self: (loaded.append(self.size), load(self))[1]  # noqa: E731
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", spy)
    data = encode(photo(640, 480), "JPEG", exif=turned(orientation))
    sizes = ((64, 64), (60, 32), (12, 70), (70, 12), (121, 121), (320, 240))
    first = []  # converting and resizing load again what is loaded
    for size in sizes:
        loaded.clear()
        read(data, size)
        first.append(loaded[0])
    shown = (640, 480) if orientation == 1 else (480, 640)
    room = [min(shown[0] / w, shown[1] / h) / 2 for w, h in sizes]
    expected = [max(scale for scale in (1, 2, 4, 8) if scale <= max(1, most)) for most in room]
    assert [640 // width for width, _ in first] == expected
    assert set(expected) >= {1, 2}


# -- what is refused ---------------------------------------------------------------------------


def test_the_limits_themselves_are_allowed() -> None:
    data = encode(noise(0, 40, 20))
    assert read(data, max_pixels=800, min_side=20, max_aspect=2.0).shape == (20, 40, 3)
    assert reason(data, max_pixels=799) == "image_too_large"
    assert reason(data, min_side=21) == "image_too_small"
    assert reason(data, max_aspect=1.99) == "image_aspect"
    tall = encode(noise(0, 20, 40))
    assert reason(tall, min_side=21) == "image_too_small"
    assert reason(tall, max_aspect=1.99) == "image_aspect"
    assert reason(encode(Image.new("L", (5000, 20)))) == "image_aspect"


FOREIGN = {
    "a page": b"<!DOCTYPE html><html><body>404</body></html>" * 9,
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "pdf": encode(noise(0), "PDF"),
    "tiff": encode(noise(0), "TIFF"),
    "gif": encode(noise(0), "GIF", save_all=True, append_images=[noise(1)]),
    "bmp": encode(noise(0), "BMP"),
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_other_formats_are_not_recognised_and_start_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    assert reason(FOREIGN[name]) == "image_unrecognised"
    assert not started


def test_only_the_formats_that_are_asked_for() -> None:
    assert reason(encode(noise(0)), formats=("JPEG", "WEBP")) == "image_unrecognised"
    assert read(FOREIGN["gif"], formats=("GIF",)).shape == (8, 8, 3)
    assert reason(FOREIGN["gif"], formats=("GIF",), animated="reject") == "image_animated"
    assert reason(b"") == "image_empty"


def bombs() -> dict[str, tuple[bytes, str]]:
    lying = bytearray(encode(noise(0), "JPEG") + bytes(20_000))
    begin, _ = marker(lying, 0xC0)
    lying[begin + 5 : begin + 9] = struct.pack(">HH", 65500, 65500)
    rows = zlib.compress(bytes(2501 * 20_000))
    bits = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    bits = b"\x89PNG\r\n\x1a\n" + bits + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50 << 20)))
    webp = bytearray(encode(noise(0), "WEBP", exif=turned(1)))  # with the canvas in its header
    webp[24:30] = (16382).to_bytes(3, "little") + (10_000).to_bytes(3, "little")
    small = 1, 1, 8, 0, b"\0\0"
    return {
        "JPEG": (bytes(lying), "image_too_large"),
        "PNG": (bits, "image_too_large"),
        "text": (png(*small, before=text), "image_corrupt"),
        "late text": (png(*small, after=text), "image_corrupt"),
        "WEBP": (bytes(webp), "image_too_large or image_corrupt"),
    }


def test_bombs_are_refused_from_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: ImageFile.ImageFile) -> None:
        raise AssertionError(f"decoded {self.size}")

    made = bombs()
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", forbidden)
    for name, (data, expected) in made.items():
        assert len(data) < 60_000, name
        if name != "late text":
            assert reason(data, max_pixels=10**9) in expected, name


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_pillows_own_limit_holds_whatever_the_filters_say(action: str) -> None:
    large = png(10_000, 10_000, 8, 0, b"")  # Pillow warns
    larger = png(20_000, 20_000, 8, 0, b"")  # Pillow raises
    before = [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        filters = list(warnings.filters)
        for data in (large, larger):
            assert reason(data, max_pixels=10**9) == "image_too_large"
        assert warnings.filters == filters
    after = [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]
    assert after == before == [89_478_485, False]


# -- what is damaged ---------------------------------------------------------------------------


def cuttable() -> dict[str, bytes]:
    image, clear = photo(24, 17), noise(0, 24, 17).convert("RGBA")
    clear.putalpha(77)
    cmyk = encode(photo(40, 30).convert("CMYK"), "JPEG")  # Pillow does not miss the end of this one
    return {
        "jpeg": encode(image, "JPEG"),
        "progressive": encode(image, "JPEG", progressive=True),
        "gray": encode(image.convert("L"), "JPEG"),
        "cmyk": cmyk,
        "with a thumbnail": with_thumbnail(cmyk),
        "png": encode(image),
        "palette": encode(image.quantize(16)),
        "exif": encode(image.quantize(4), exif=turned(6)),
        "apng": encode(image.quantize(4), save_all=True, append_images=[image.quantize(3)]),
        "webp": encode(image, "WEBP"),
        "lossless": encode(image.quantize(16), "WEBP", lossless=True),
        "alpha": encode(clear, "WEBP", exif=turned(6)),
    }


def with_thumbnail(jpeg: bytes) -> bytes:
    content = b"Exif\0\0" + encode(noise(0), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize("name", list(cuttable()))
def test_what_is_cut_off_anywhere_is_corrupt(name: str) -> None:
    data = cuttable()[name]
    assert read(data).size
    step = max(1, len(data) // 250)
    places = {*range(1, 60), *range(60, len(data), step), *range(len(data) - 40, len(data))}
    assert {length: reason(data[:length]) for length in places} == dict.fromkeys(
        places, "image_corrupt"
    )


def test_of_an_mpo_the_first_picture_suffices() -> None:
    first = photo(24, 17)
    data = encode(first, "MPO", save_all=True, append_images=[noise(0, 24, 17)])
    end = data.index(b"\xff\xd9") + 2
    assert np.array_equal(read(data[: end + 99]), read(data))
    assert reason(data[: end - 1]) == "image_corrupt"


def test_bytes_behind_the_end_do_no_harm() -> None:
    for name, data in cuttable().items():
        tail = b"\xff\xda and a film of a phone"
        assert np.array_equal(read(data + tail), read(data)), name


def test_every_checksum_of_a_png_counts() -> None:
    data = encode(noise(1, 12, 10), exif=turned(1))
    place = 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        for wrong in (place + 8 + length, place + 11 + length):
            broken = bytearray(data)
            broken[wrong] ^= 1
            assert reason(bytes(broken)) == "image_corrupt", data[place + 4 : place + 8]
        place += 12 + length
    for wrong in range(len(data) - 60, len(data) - 20):  # pixels
        broken = bytearray(data)
        broken[wrong] ^= 4
        assert reason(bytes(broken)) == "image_corrupt"


def test_a_jpeg_of_a_thousand_scans_is_not_decoded() -> None:
    data = encode(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    scans = data.count(b"\xff\xda")
    many = data[:-2] + last * (MAX_SCANS - scans) + data[-2:]
    assert np.abs(read(many) - 90).max() <= 2
    assert reason(data[:-2] + last * (MAX_SCANS - scans + 1) + data[-2:]) == "image_corrupt"
    thumbnail = b"\xff\xda" * (MAX_SCANS + 1)  # of these bytes none is a scan
    content = struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert np.abs(read(data[:2] + b"\xff\xe5" + content + data[2:]) - 90).max() <= 2


def test_damaged_bytes_give_pixels_or_a_reason() -> None:
    chance = np.random.default_rng(0)
    sources = list(cuttable().values())
    reasons = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF and APNG
        for trial in range(1500):
            data = bytearray(sources[trial % len(sources)])
            end = len(data) if trial % 2 else min(len(data), 200)
            for place in chance.integers(0, end, 1 + trial % 4):
                data[place] = chance.choice([0, 255, int(chance.integers(256))])
            try:
                found = decode(
                    bytes(data), RULES, size=(8, 6), crop="random", chance=chance
                )  # fmt: skip
            except Bad as bad:
                reasons.add(bad.reason)
            else:
                assert found.shape == (6, 8, 3)
    assert {"image_corrupt", "image_unrecognised", "image_too_large"} <= reasons


# -- what is not the data's fault --------------------------------------------------------------


@pytest.mark.parametrize("error", [TypeError, MemoryError, AttributeError, KeyError])
@pytest.mark.parametrize("place", ["load", "convert", "resize"])
def test_mistakes_of_the_program_come_through(
    place: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error("a mistake")

    owner = ImageFile.ImageFile if place == "load" else Image.Image
    data = encode(noise(0, 20, 20).convert("L"))
    monkeypatch.setattr(owner, place, broken)
    with pytest.raises(error, match="a mistake"):
        decode(data, RULES, size=(8, 8), crop="center", chance=None)


def test_even_those_that_look_like_a_broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("box exceeds the picture")

    data = encode(noise(0, 20, 20))
    monkeypatch.setattr(Image.Image, "resize", broken)
    with pytest.raises(ValueError, match="box exceeds"):
        decode(data, RULES, size=(8, 8), crop="center", chance=None)


def test_a_header_is_read_without_decoding_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = Image.open
    spy = lambda *a, **k: (opened.append(a), real(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(Image, "open", spy)
    sources = [encode(noise(1, 12, 10), kind) for kind in ("JPEG", "PNG", "WEBP")]
    for data in sources:
        decode(data, RULES, size=(8, 8), crop="center", chance=None)
    assert len(opened) == len(sources)

    def forbidden(self: Image.Image) -> None:
        raise AssertionError("decoded")

    for owner in (ImageFile.ImageFile, type(real(io.BytesIO(sources[2])))):
        monkeypatch.setattr(owner, "load", forbidden)
    assert [header(data, RULES)[:2] for data in sources] == [(12, 10)] * 3

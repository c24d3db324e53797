"""Pictures of every kind, as a sample of a shard makes them RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from salon.data.shards import decode
from tars import encode, noise


def read(picture: bytes, kind: str = "png", resolution: int = 8) -> np.ndarray:
    sample = {"__key__": "k", "__url__": "u", kind: picture, "txt": b"x"}
    return decode(sample, resolution=resolution, max_pixels=10**6).image.astype(int)


def test_sixteen_bit_gray_keeps_its_brightness() -> None:
    gray = Image.fromarray(np.full((8, 8), 129 << 8, np.uint16))
    assert np.array_equal(read(encode(gray)), np.full((8, 8, 3), 129))


def test_transparency_stands_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 4, 8))
    for image in (clear, clear.quantize(4)):  # with a palette: transparency is in its info
        pixels = read(encode(image))
        assert np.array_equal(pixels[:, 4:], np.full((8, 4, 3), 255))
        assert np.array_equal(pixels[:, :4], np.broadcast_to([200, 0, 0], (8, 4, 3)))
    half = read(encode(Image.new("LA", (8, 8), (0, 128))))
    assert np.abs(half - 127).max() <= 1


def test_palettes_gray_and_cmyk_become_rgb() -> None:
    color = Image.new("RGB", (8, 8), (200, 60, 30))
    assert np.array_equal(read(encode(color.quantize(4))), np.asarray(color))
    assert np.array_equal(read(encode(Image.new("1", (8, 8), 1))), np.full((8, 8, 3), 255))
    cmyk = read(encode(color.convert("CMYK"), "JPEG", quality=95), "jpg")
    assert np.abs(cmyk - np.asarray(color)).max() <= 4
    gray = read(encode(Image.new("L", (8, 8), 77), "JPEG", quality=95), "jpg")
    assert np.abs(gray - 77).max() <= 2
    webp = read(encode(color, "WEBP", lossless=True), "webp")
    assert np.array_equal(webp, np.asarray(color))


def test_the_content_says_the_format() -> None:
    assert np.array_equal(read(encode(noise(3)), "jpg"), np.asarray(noise(3)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_orientation_of_the_camera_is_honoured(kind: str) -> None:
    image = Image.new("RGB", (64, 32), (0, 0, 250))
    image.paste((250, 0, 0), (0, 0, 32, 32))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right: the left comes to the top
    pixels = read(encode(image, kind, exif=exif), kind.lower(), resolution=16)
    assert (pixels[:7, :, 0] > 200).all()
    assert (pixels[9:, :, 2] > 200).all()


def test_the_shorter_side_is_resized_and_the_centre_cut() -> None:
    image = noise(0, 60, 20)
    resized = image.resize((30, 10), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((10, 0, 20, 10)))
    assert np.array_equal(read(encode(image), resolution=10), expected)
    tall = image.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(read(encode(tall), resolution=10), np.rot90(expected))
    assert read(encode(noise(0, 1, 1))).shape == (8, 8, 3)


def test_a_large_jpeg_comes_out_as_the_full_decode_would() -> None:
    """It is decoded at a fraction of its size; the difference is at the level of JPEG's own."""
    detailed = noise(0, 96, 72).resize((768, 576), Image.Resampling.BICUBIC)
    picture = encode(detailed, "JPEG", quality=92)
    full = Image.open(io.BytesIO(picture)).convert("RGB")
    box = (96, 0, 672, 576)
    expected = np.asarray(full.resize((64, 64), Image.Resampling.BICUBIC, box=box)).astype(int)
    error = read(picture, "jpg", resolution=64) - expected
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 40

"""Shards written member by member, so that they can be made wrong in every way."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Members = dict[str, bytes]  # extension -> bytes


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def write_shard(path: Path, samples: Sequence[tuple[str, Members]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def good(number: int) -> tuple[str, Members]:
    key = f"{number:05d}"
    caption = f"noise {number}"
    told = json.dumps({"caption": caption, "key": key})
    return key, {"png": encode(noise(number)), "txt": caption.encode(), "json": told.encode()}


def folder_of(folder: Path, shards: int, each: int) -> Path:
    """A folder of good shards; sample i has key and caption i."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        samples = [good(shard * each + place) for place in range(each)]
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder

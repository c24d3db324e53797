"""The embedded data set: the world of `salon.shapes`, rendered to LAION-style shards on first use.

The layout is what img2dataset leaves: `00000.tar` with `KEY.png`, `KEY.txt`, `KEY.json`, beside it
`00000.parquet` and `00000_stats.json`. Every byte is a function of the settings: sample i of a
split is drawn from its own generator, seeded with (seed, split, i).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from salon.data.convert.base import Row, write_shard
from salon.shapes import captions, world
from salon.shapes.render import mask_box, render

# A split is (its number in the seed, whether every scene has a held-out composition in it).
SPLITS = {"train": (0, False), "val": (1, False), "test": (2, False), "heldout": (3, True)}


class ShapesSettings(NamedTuple):
    resolution: int
    seed: int
    samples: dict[str, int]  # split -> how many
    shard_size: int  # samples in a shard, at most
    phrasings: int  # captions for each picture; the first is its KEY.txt
    pairs: float  # share of the pictures that show two objects; the others show one

    @property
    def identity(self) -> str:
        """Ten hex digits that change with anything that changes a byte of the shards."""
        told = json.dumps([world.VERSION, *self._asdict().values()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:10]


def prepare(root: Path, settings: ShapesSettings) -> Path:
    """The folder of the rendered data set; renders it where it is missing.

    Written aside and renamed, so an interrupted run leaves nothing half-made under the final name,
    and behind a lock, so that two runs at once render it once.

    Raises ValueError where `root` cannot be written.
    """
    folder = root / f"shapes-{settings.identity}"
    try:
        if folder.exists():
            return folder
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".shapes-{settings.identity}.lock"):
            if not folder.exists():
                aside = root / f".shapes-{settings.identity}.partial"
                shutil.rmtree(aside, ignore_errors=True)
                _write_all(aside, settings)
                os.replace(aside, folder)
    except OSError as error:
        raise ValueError(
            f"data.root={str(root)!r} cannot be written ({error}); expected a folder with space "
            f"for {sum(settings.samples.values()):,} small pictures. Name another: "
            "data.root=FOLDER"
        ) from error
    return folder


def _write_all(folder: Path, settings: ShapesSettings) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        total = sum(settings.samples.values())
        task = progress.add_task(f"rendering shapes at {settings.resolution} px", total=total)
        for split, count in settings.samples.items():
            (folder / split).mkdir(parents=True)
            for shard, first in enumerate(range(0, count, settings.shard_size)):
                indices = range(first, min(first + settings.shard_size, count))
                write_shard(folder / split, shard, _rows(split, indices, settings, shard))
                progress.advance(task, len(indices))
    (folder / "dataset.json").write_text(
        json.dumps(
            {"name": "shapes", "world": world.VERSION, **settings._asdict()},
            indent=2,
            sort_keys=True,  # as in the identity: the order of the splits says nothing
        )
    )


def _rows(split: str, indices: range, settings: ShapesSettings, shard: int) -> Iterator[Row]:
    number, held_out_only = SPLITS[split]
    size = settings.resolution
    for place, index in enumerate(indices):
        rng = np.random.default_rng([settings.seed, number, index])
        # Evenly spread, so that any run of pictures has its share.
        pair = int((index + 1) * settings.pairs) > int(index * settings.pairs)
        scene = world.draw_scene(rng, objects=1 + pair, held_out_only=held_out_only)
        told = [captions.describe(scene, rng) for _ in range(settings.phrasings)]
        prompt = captions.describe(scene, rng, full=True)
        buffer = io.BytesIO()
        Image.fromarray(render(scene, size)).save(buffer, "PNG", compress_level=1)
        picture = buffer.getvalue()
        yield Row(
            {
                "caption": told[0].text,
                "captions": [caption.text for caption in told],
                "asked": told[0].asked,
                # What the jury asks for: a phrasing that leaves no attribute open.
                "prompt": {"caption": prompt.text, "asked": prompt.asked},
                "scene": scene.to_json(),
                "boxes": [mask_box(scene, i, size) for i in range(len(scene.objects))],
                "held_out": world.held_out(scene),
                "width": size,
                "height": size,
                "original_width": size,
                "original_height": size,
                "status": "success",
                "error_message": None,
                "sha256": hashlib.sha256(picture).hexdigest(),
                "key": f"{shard:05d}{place:04d}",
            },
            picture,
            "png",
        )

"""python benchmarks/stream.py

Images per CPU second of our training stream and of a plain webdataset pipeline (shard shuffle,
sample shuffle, Pillow to a tensor in [-1, 1], batches) on the same shards, which are rendered into
a temporary folder. The two take turns, on one thread, in process CPU time; only the ratio of the
medians travels between machines. README.md beside this file keeps what was tried.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from salon.data.shapes import ShapesSettings, prepare
from salon.data.shards import Reader, TrainStream, expand

LANES, BATCH = 4, 50


def ours(shards: list[str], resolution: int, window: int) -> Iterator[Any]:
    return iter(
        TrainStream(
            shards, Reader(resolution, 50_000_000), batch_size=BATCH, seed=0, lanes=LANES,
            window=window, rank=0, ranks=1, start=0,
        )
    )  # fmt: skip


def plain(shards: list[str], resolution: int, window: int) -> Iterator[Any]:
    def read(sample: dict[str, Any]) -> tuple[torch.Tensor, str, str]:
        image = Image.open(io.BytesIO(sample["png"] if "png" in sample else sample["jpg"]))
        image = image.convert("RGB")
        if image.size != (resolution, resolution):  # the pictures here are square
            image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, sample["txt"].decode(), sample["__key__"]

    # As many samples wait to be shuffled as with us.
    shuffled = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).repeat()
    shuffled = shuffled.shuffle(LANES * window, initial=LANES * window)
    return iter(shuffled.map(read).batched(BATCH, partial=False))


def write_jpegs(folder: Path, shards: int, each: int) -> None:
    """256-px JPEGs with detail at every scale, about as large as photographs are."""
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with wds.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for place in range(each):
                octaves = [
                    np.asarray(
                        Image.fromarray(
                            rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                        ).resize((256, 256), Image.Resampling.BICUBIC),
                        np.float32,
                    )
                    for side in (4, 16, 64)
                ]
                pixels = (0.5 * octaves[0] + 0.3 * octaves[1] + 0.2 * octaves[2]).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
                key = f"{shard:05d}{place:04d}"
                tar.write({"__key__": key, "jpg": buffer.getvalue(), "txt": "noise", "json": "{}"})


def rates(streams: list[Iterator[Any]], batches: int, rounds: int) -> list[list[float]]:
    """Images per CPU second in each round, in the order A B A B, after one that is not counted."""
    found: list[list[float]] = [[] for _ in streams]
    for i in range(rounds + 1):
        for stream, rate in zip(streams, found, strict=True):
            start = time.process_time()
            for batch in itertools.islice(stream, batches):
                assert batch[0].shape[0] == BATCH
            if i > 0:
                rate.append(batches * BATCH / (time.process_time() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        counts = {"train": 8000, "val": 1, "test": 1, "heldout": 1}
        shapes = expand(
            "shapes", str(prepare(root, ShapesSettings(32, 0, counts, 1000, 1)) / "train")
        )
        (root / "jpeg").mkdir()
        write_jpegs(root / "jpeg", shards=8, each=100)
        jpegs = expand("jpeg", str(root / "jpeg"))
        size = sum(Path(shard).stat().st_size for shard in jpegs) / 800 / 1024

        print(
            f"torch {torch.__version__}, webdataset {wds.__version__}, {torch.get_num_threads()} "
            f"thread; median images per CPU second of {arguments.rounds} rounds; a JPEG sample "
            f"has {size:.0f} KB"
        )
        print(f"{'':<24}{'salon':>8}{'webdataset':>12}{'ratio':>8}")
        # A round is a whole pass: we read by the window, and webdataset drains its buffer at the
        # end of each pass.
        for name, shards, resolution, window, batches in (
            ("shapes, 32 px PNG", shapes, 32, 1000, 160),
            ("256 px JPEG", jpegs, 256, 100, 16),
            ("256 px JPEG to 64 px", jpegs, 64, 100, 16),
        ):
            streams = [make(shards, resolution, window) for make in (ours, plain)]
            a, b = map(statistics.median, rates(streams, batches, arguments.rounds))
            print(f"{name:<24}{a:>8.0f}{b:>12.0f}{a / b:>8.3f}")


if __name__ == "__main__":
    main()

"""python benchmarks/stream.py [--rounds N]

Samples per CPU second of our reader and training stream and of webdataset on the same shards, which
are made in a temporary folder. The two take turns, on one thread, in process CPU time; only the
ratio of the medians travels between machines. README.md beside this file keeps what was tried.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from hydra import compose, initialize_config_dir
from PIL import Image

from salon.config import build
from salon.data.reader import Candidate, Reader
from salon.data.shapes import ShapesSettings, prepare
from salon.data.stream import Source, TrainStream

LANES, BATCH = 4, 50
CONF = Path(__file__).resolve().parents[1] / "conf"


def rules(folder: Path) -> Any:
    """The data module as conf/ has it, on these shards; its reader and patience are used."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        changes = [f"data.train={folder}", f"data.val={folder}", "data.resolution=32"]
        return build(compose("train", ["data=shards", *changes]).data, "data")


# -- the contestants, each an endless iterator over units of samples -----------------------------


def our_tar(shards: list[str], reader: Reader) -> Iterator[int]:
    while True:
        for shard in shards:
            yield sum(isinstance(item, Candidate) for item in reader.candidates(shard, "train"))


def their_tar(shards: list[str]) -> Iterator[int]:
    while True:
        for shard in shards:
            opened = wds.tariterators.url_opener([{"url": shard}])
            members = wds.tariterators.tar_file_expander(opened)
            yield sum(1 for _ in wds.tariterators.group_by_keys(members))


def our_stream(shards: list[str], module: Any, resolution: int, window: int) -> Iterator[int]:
    stream = TrainStream(
        [Source("train", shards, 1.0)], module.reader._replace(resolution=resolution),
        module.patience, batch_size=BATCH, seed=0, lanes=LANES, window=window,
    )  # fmt: skip
    return (len(batch.images) for batch in stream)


def their_stream(shards: list[str], resolution: int, window: int) -> Iterator[int]:
    def resize(sample: dict[str, Any]) -> tuple[torch.Tensor, str, str]:
        image = sample["png"] if "png" in sample else sample["jpg"]  # decoded, and RGB
        if image.size != (resolution, resolution):  # the pictures here are square
            image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, sample["txt"], sample["__key__"]

    # As many samples wait to be shuffled as with us.
    shuffled = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).repeat()
    shuffled = shuffled.shuffle(LANES * window, initial=LANES * window)
    batches = shuffled.decode("pil").map(resize).batched(BATCH, partial=False)
    return (len(batch[0]) for batch in batches)


# -- the shards ----------------------------------------------------------------------------------


def write_jpegs(folder: Path, side: int, shards: int, each: int) -> list[str]:
    """JPEGs with detail at every scale, about as large as photographs are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with wds.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for place in range(each):
                octaves = [
                    np.asarray(
                        Image.fromarray(
                            rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
                        ).resize((side, side), Image.Resampling.BICUBIC),
                        np.float32,
                    )
                    for grain in (4, side // 16, side // 4)
                ]
                pixels = (0.5 * octaves[0] + 0.3 * octaves[1] + 0.2 * octaves[2]).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
                key = f"{shard:05d}{place:04d}"
                tar.write({"__key__": key, "jpg": buffer.getvalue(), "txt": "noise", "json": "{}"})
    return sorted(map(str, folder.glob("*.tar")))


# -- the measurement -----------------------------------------------------------------------------


def rates(streams: list[Iterator[int]], units: int, rounds: int) -> list[list[float]]:
    """Samples per CPU second in each round, in the order A B A B, after one that is not counted."""
    found: list[list[float]] = [[] for _ in streams]
    for i in range(rounds + 1):
        for stream, rate in zip(streams, found, strict=True):
            start = time.process_time()
            samples = sum(itertools.islice(stream, units))
            if i > 0:
                rate.append(samples / (time.process_time() - start))
    return found


def resume_seconds(shards: list[str], module: Any, samples: int, window: int) -> float:
    """CPU seconds to the first batch of a run that goes on after so many samples."""
    told = {"batch_size": BATCH, "seed": 0, "lanes": LANES, "window": window}
    sources = [Source("train", shards, 1.0)]
    batches = list(
        itertools.islice(
            TrainStream(sources, module.reader, module.patience, **told), samples // BATCH
        )
    )
    cursors = {batch.trace.lane: batch.trace.cursor for batch in batches}
    start = time.process_time()
    resumed = TrainStream(
        sources, module.reader, module.patience, **told, start=len(batches), cursors=cursors
    )
    for _ in itertools.islice(resumed, LANES):  # each lane has found its place
        pass
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        counts = {"train": 8000, "val": 1, "test": 1, "heldout": 1}
        folder = prepare(root, ShapesSettings(32, 0, counts, 1000, 1, 0.25)) / "train"
        shapes = sorted(map(str, folder.glob("*.tar")))
        jpegs = {
            side: write_jpegs(root / f"{side}", side, shards=8, each=each)
            for side, each in ((256, 100), (512, 50), (1024, 25))
        }
        module = rules(folder)
        print(
            f"torch {torch.__version__}, webdataset {wds.__version__}, one thread; median samples "
            f"per CPU second of {rounds} rounds"
        )
        print(f"{'':<34}{'salon':>8}{'webdataset':>12}{'ratio':>8}")

        def compare(name: str, units: int, *make: Callable[[], Iterator[int]]) -> None:
            a, b = map(statistics.median, rates([one() for one in make], units, rounds))
            print(f"{name:<34}{a:>8.0f}{b:>12.0f}{a / b:>8.2f}")

        for name, shards in (("shapes, 32 px PNG", shapes), ("256 px JPEG", jpegs[256])):
            size = sum(Path(shard).stat().st_size for shard in shards)
            size //= sum(next(our_tar([s], module.reader)) for s in shards) * 1000
            compare(
                f"tar only, {name}, {size} KB", len(shards),
                lambda shards=shards: our_tar(shards, module.reader),
                lambda shards=shards: their_tar(shards),
            )  # fmt: skip
        # A round is a whole pass: we read by the window, and webdataset drains its buffer at the
        # end of each pass.
        passes = [("shapes, 32 px PNG", shapes, 32, 1000, 8000)]
        for side, each in ((256, 100), (512, 50), (1024, 25)):
            passes.append((f"{side} px JPEG to 64 px", jpegs[side], 64, 2 * each, 8 * each))
        for name, shards, resolution, window, samples in passes:
            compare(
                name, samples // BATCH,
                lambda s=shards, r=resolution, w=window: our_stream(s, module, r, w),
                lambda s=shards, r=resolution, w=window: their_stream(s, r, w),
            )  # fmt: skip
        for samples in (500, 10_000):
            seconds = resume_seconds(shapes, module, samples, window=1000)
            print(f"going on after {samples:,} samples of shapes: {seconds:.2f} CPU seconds")


if __name__ == "__main__":
    main()

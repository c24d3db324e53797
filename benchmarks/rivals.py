"""python benchmarks/rivals.py [--rounds N]

Samples per CPU second of our training stream beside webdataset, Hugging Face datasets and litdata
on the same pictures; then what our counting and checking cost by themselves. The contestants take
turns, each a whole pass, in one process and on one thread. The CPU time is the process's, so that
it includes their threads; none of them runs another process meanwhile. datasets and litdata are
optional: pip install datasets litdata. README.md beside this file keeps what was found.

    salon       reads the tars; exact resume; a bad picture is left out, and counted with its reason
    webdataset  reads the tars; no resume
    datasets    reads the tars; a resume that loses the shuffle buffer
    litdata     reads chunks of its own, converted beforehand; exact resume; shuffles the chunks,
                and samples in windows of 256 of a chunk

A bad picture ends the pass of the other three, unless webdataset is given a handler; none counts
them. Each has what its documentation recommends where one process reads from a local disk. datasets
gives Pillow's pictures, resized by Pillow; litdata torchvision's tensors, resized by torchvision.
All but webdataset make a batch float at once.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from stream import BATCH, LANES, our_stream, rates, rules, their_stream, write_jpegs
from torch.utils.data import DataLoader

from salon.data import image
from salon.data.image import GAP
from salon.data.reader import MEMBERS, picture_of
from salon.data.shapes import ShapesSettings, prepare
from salon.data.tally import Tally
from salon.data.tar import BLOCK, CHUNK, Encoded, Limits, samples

# Both read the environment when they are imported: after main() has made a temporary folder.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITDATA_DISABLE_VERSION_CHECK": "1"}
FOLDERS = (
    "HF_HOME", "LITDATA_CACHE_DIR", "DATA_OPTIMIZER_CACHE_FOLDER",
    "DATA_OPTIMIZER_DATA_CACHE_FOLDER",
)  # fmt: skip
OPTIONAL = ("datasets", "litdata")
SIZES = ((256, 100), (512, 50), (1024, 25))  # side, pictures a shard; of 8 shards: whole batches


def encoded(shard: str, limits: Limits) -> Iterator[Encoded]:
    with open(shard, "rb") as stream:
        for found in samples(stream, limits=limits, extensions=MEMBERS):
            assert isinstance(found, Encoded)
            yield found


# -- the rivals, each an endless iterator over sizes of batches ----------------------------------


def hf_stream(shards: list[str], resolution: int, window: int) -> Iterator[int]:
    from datasets import load_dataset

    found = load_dataset("webdataset", data_files={"train": shards}, split="train", streaming=True)
    name = "png" if "png" in found.features else "jpg"
    found = found.select_columns([name, "txt", "__key__"])  # no .json is cast
    found = found.shuffle(seed=0, buffer_size=LANES * window).repeat(None)

    def collate(batch: list[dict[str, Any]]) -> tuple[torch.Tensor, list[str], list[str]]:
        made = []
        for sample in batch:
            picture = sample[name].convert("RGB")
            if picture.size != (resolution, resolution):
                picture = picture.resize((resolution, resolution), Image.Resampling.BICUBIC)
            made.append(np.asarray(picture))
        pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()
        return pixels.float() / 127.5 - 1, [s["txt"] for s in batch], [s["__key__"] for s in batch]

    return (len(batch[0]) for batch in DataLoader(found, BATCH, collate_fn=collate, drop_last=True))


def lit_sample(task: tuple[str, Limits]) -> Iterator[dict[str, Any]]:
    import litdata

    for found in encoded(*task):
        picture = litdata.Image(bytes=picture_of(found))  # kept as they are
        yield {"image": picture, "caption": found.members["txt"].decode(), "key": found.key}


def lit_convert(shards: list[str], folder: Path, limits: Limits) -> float:
    """CPU seconds that it took, with the processes that it started."""
    import litdata

    told = {"chunk_bytes": "64MB", "num_workers": 1, "verbose": False}
    start = sum(os.times()[:4])
    litdata.optimize(lit_sample, [(shard, limits) for shard in shards], str(folder), **told)
    return sum(os.times()[:4]) - start


def lit_stream(folder: Path, resolution: int) -> Iterator[int]:
    import litdata
    from torchvision.transforms.v2 import functional

    def resize(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["image"].shape[1:] != (resolution, resolution):
            size, bicubic = [resolution, resolution], functional.InterpolationMode.BICUBIC
            sample["image"] = functional.resize(sample["image"], size, bicubic, antialias=True)
        return sample

    found = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, transform=resize)
    while True:
        for batch in litdata.StreamingDataLoader(found, batch_size=BATCH):
            yield len(batch["image"].float() / 127.5 - 1)


# -- the same as ours, without a check -----------------------------------------------------------


def bare_tar(shard: str) -> Iterator[Encoded]:
    """The shortest reader of ustar: it believes what it is told, and passes over pax headers."""
    key, members = b"", {}
    with open(shard, "rb", buffering=CHUNK) as stream:
        while (block := stream.read(BLOCK))[:1] > b"\0":
            size = int(block[124:135], 8)
            stem, _, extension = block[:100].rstrip(b"\0").rpartition(b".")
            content = stream.read(size + -size % BLOCK)[:size]
            if block[156:157] == b"x":
                continue
            if stem != key:
                if members:
                    yield Encoded(key.decode(), members)
                key, members = stem, {}
            if (kind := extension.decode()) in MEMBERS:
                members[kind] = content
    yield Encoded(key.decode(), members)


def bare_decode(data: bytes, resolution: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    picture.draft(None, (2 * resolution, 2 * resolution))
    picture = picture.convert("RGB")
    if picture.size != (resolution, resolution):
        size = resolution, resolution
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=GAP)
    return np.array(picture)


def uncounted() -> Any:
    """A context in which nothing is counted, nor a counter made."""
    nothing = dict.fromkeys(("__init__", "merge", "add"), lambda *_: None)
    return mock.patch.multiple(Tally, create=True, used=Counter(), **nothing)


# -- the measurement -----------------------------------------------------------------------------


def passes(stream: Iterator[int], batches: int, context: Callable[[], Any]) -> Iterator[int]:
    while True:
        with context():
            count = sum(itertools.islice(stream, batches))
        yield count


def compare_streams(sets: dict[str, Any], root: Path, module: Any, rounds: int) -> None:
    known = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    for name in OPTIONAL:
        if name not in known:
            print(f"{name} is missing and left out: pip install datasets litdata")
    names = ["salon", "webdataset", *known]
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", *names[1:])))
    print(f"median samples per CPU second of {rounds} rounds, and ours over theirs")
    print(f"{'':<26}" + "".join(f"{name:>12}" for name in names + [f"/{n}" for n in names[1:]]))
    for number, (name, (shards, resolution, window, count)) in enumerate(sets.items()):
        told = shards, resolution, window
        streams = [our_stream(shards, module, resolution, window), their_stream(*told)]
        if "datasets" in known:
            streams.append(hf_stream(*told))
        if "litdata" in known:
            folder = root / f"chunks{number}"
            seconds = lit_convert(shards, folder, module.reader.limits)
            streams.append(lit_stream(folder, resolution))
        found = list(map(statistics.median, rates(streams, count // BATCH, rounds)))
        line = "".join(f"{rate:>12,.0f}" for rate in found)
        line += "".join(f"{found[0] / rate:>12.2f}" for rate in found[1:])
        print(f"{name:<26}{line}", flush=True)
        if "litdata" in known:
            print(f"    litdata's conversion: {seconds:.1f} CPU seconds, once")


def compare_checks(sets: dict[str, Any], module: Any, rounds: int) -> None:
    print(f"checking: median samples per CPU second of {rounds} rounds")
    print(f"{'':<42}{'with':>12}{'without':>12}{'ratio':>8}")

    def row(name: str, *streams: Iterator[int], units: int = 1) -> None:
        a, b = map(statistics.median, rates(list(streams), units, rounds))
        print(f"{name:<42}{a:>12,.0f}{b:>12,.0f}{a / b:>8.2f}", flush=True)

    reader = module.reader
    for name, (shards, resolution, window, count) in sets.items():
        every = [found for shard in shards for found in encoded(shard, reader.limits)]
        assert every == [found for shard in shards for found in bare_tar(shard)]
        pictures = [picture_of(found) for found in every[:800]]
        told = {"size": (resolution, resolution), "crop": "center", "chance": None}
        row(
            f"decoding, {name}",
            (1 for x in cycle(pictures) if image.decode(x, reader.image, **told).size),
            (1 for x in cycle(pictures) if bare_decode(x, resolution).size),
            units=len(pictures),
        )
        if resolution > 32 and "256" not in name:
            continue  # their tars and counters are no others
        row(
            f"tar, {name}",
            (sum(1 for _ in encoded(shard, reader.limits)) for shard in cycle(shards)),
            (sum(1 for _ in bare_tar(shard)) for shard in cycle(shards)),
            units=5 * len(shards),
        )
        streams = [our_stream(shards, module, resolution, window) for _ in range(2)]
        row(
            f"counting, {name}",
            passes(streams[0], count // BATCH, contextlib.nullcontext),
            passes(streams[1], count // BATCH, uncounted),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ.update(OFFLINE | {name: str(root / name) for name in FOLDERS})
        counts = {"train": 8000, "val": 1, "test": 1, "heldout": 1}
        folder = prepare(root, ShapesSettings(32, 0, counts, 1000, 1, 0.25)) / "train"
        sets = {"shapes, 32 px PNG": (sorted(map(str, folder.glob("*.tar"))), 32, 1000, 8000)}
        for side, each in SIZES:
            jpegs = write_jpegs(root / f"{side}", side, shards=8, each=each)
            sets[f"{side} px JPEG to 64 px"] = jpegs, 64, 2 * each, 8 * each
        module = rules(folder)
        compare_streams(sets, root, module, rounds)
        compare_checks(sets, module, rounds)


if __name__ == "__main__":
    main()

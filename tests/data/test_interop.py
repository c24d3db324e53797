"""Shards go both ways between here and webdataset, Hugging Face's datasets, and img2dataset."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from hydra import compose
from PIL import Image

from reading import reader
from salon.config import build
from salon.data.check import check
from salon.data.convert.base import convert
from salon.data.convert.sources import source
from salon.data.reader import Candidate, Sample
from salon.data.shapes import ShapesSettings, prepare
from tars import encode, noise

ROOT = Path(__file__).resolve().parents[2]


class Told(NamedTuple):
    """A sample as somebody else reads it, to compare."""

    key: str
    caption: str
    json: dict[str, Any]
    pixels: str  # digest of shape and values in RGB


def digest(image: Image.Image) -> str:
    pixels = np.asarray(image.convert("RGB"))
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def picture(number: int, kind: str) -> bytes:
    return encode(noise(number, 9, 7), kind)


def folder_shards(folder: Path, kinds: tuple[str, ...]) -> tuple[Path, list[Told]]:
    """Pictures with captions made into two shards of four and two; what they hold."""
    (folder / "in").mkdir(parents=True)
    for number in range(6):
        kind = kinds[number % len(kinds)]
        path = folder / "in" / f"{number}.{kind.lower()}"
        path.write_bytes(picture(number, kind))
        path.with_suffix(".txt").write_text(f"caption {number}, é 画像")
    made = source("folder", folder / "in", {"val_share": 0.0, "test_share": 0.0})
    convert(made, folder / "out", shard_size=4, splits=None)
    expected = []
    for number in range(6):
        raw = picture(number, kinds[number % len(kinds)])
        with Image.open(io.BytesIO(raw)) as image:
            key, caption = f"{number // 4:05d}{number % 4:04d}", f"caption {number}, é 画像"
            file = f"{number}.{kinds[number % len(kinds)].lower()}"
            told = {"key": key, "caption": caption, "captions": [caption], "file_name": file,
                    "width": 9, "height": 7, "error_message": None,
                    "sha256": hashlib.sha256(raw).hexdigest()}  # fmt: skip
            expected.append(Told(key, caption, told, digest(image)))
    return folder / "out" / "train", expected


def shards_in(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def read_here(folder: Path) -> list[Told]:
    """By the reader; no picture of these is scaled or cropped on the way."""
    found = []
    for shard in shards_in(folder):
        for item in reader().candidates(shard, "train"):
            assert isinstance(item, Candidate), item
            (kind,) = set(item.encoded.members) - {"txt", "json"}
            members = item.encoded.members
            with Image.open(io.BytesIO(members[kind])) as image:
                told = json.loads(members["json"]), digest(image)
            found.append(Told(item.encoded.key, members["txt"].decode(), *told))
    return found


def assert_told(found: list[Told], expected: list[Told]) -> None:
    assert [one.key for one in found] == [one.key for one in expected]
    assert [one.caption for one in found] == [one.caption for one in expected]
    assert [one.pixels for one in found] == [one.pixels for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert {name: one.json[name] for name in other.json} == other.json


# -- ours, read by others --------------------------------------------------------------------------


def test_webdataset_reads_what_a_conversion_writes(tmp_path: Path) -> None:
    folder, expected = folder_shards(tmp_path, ("PNG", "JPEG", "WEBP"))
    found = []
    for sample in wds.WebDataset(shards_in(folder), shardshuffle=False).decode("pil"):
        (kind,) = {"png", "jpg", "webp"} & set(sample)
        pixels = digest(sample[kind])
        found.append(Told(sample["__key__"], sample["txt"], sample["json"], pixels))
    assert_told(found, expected)


# What `datasets` reads of folders of shards, twice: streamed, and through its Arrow files.
READ = """
import json, socket, sys
import numpy as np

def refuse(*_):
    raise AssertionError("it asks the network")

socket.socket.connect = socket.getaddrinfo = refuse
from datasets import load_dataset
from test_interop import digest, shards_in
from pathlib import Path

for folder in sys.argv[1:]:
    for streaming in (True, False):
        given = {"data_files": shards_in(Path(folder)), "split": "train", "streaming": streaming}
        for row in load_dataset("webdataset", **given):
            (kind,) = {"png", "jpg", "webp"} & set(row)
            print(json.dumps([row["__key__"], row["txt"], row["json"], digest(row[kind])]))
"""


def test_hugging_face_datasets_reads_what_is_written_here(tmp_path: Path) -> None:
    """Of one format each: it takes the names of the first sample's members for all."""
    settings = ShapesSettings(
        resolution=16, seed=3, samples={"train": 12, "heldout": 6}, shard_size=8, phrasings=3,
        pairs=0.5,
    )  # fmt: skip
    shapes = prepare(tmp_path / "shapes", settings)
    jpegs, expected = folder_shards(tmp_path / "jpegs", ("JPEG",))
    folders = [jpegs, shapes / "train", shapes / "heldout"]
    offline = {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(tmp_path / "home" / "datasets"),
        "PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[:2]), *sys.path]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, folders)], env=os.environ | offline,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [Told(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == 2 * (6 + 12 + 6)
    for folder in folders:
        ours = read_here(folder)
        both, found = found[: 2 * len(ours)], found[2 * len(ours) :]
        for theirs in (both[: len(ours)], both[len(ours) :]):
            assert_told(theirs, ours)
    assert_told(read_here(jpegs), expected)


# -- theirs, read here -----------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["TarWriter", "ShardWriter"])
def test_what_webdataset_encodes_is_decoded_here(writer: str, tmp_path: Path) -> None:
    """Pictures, texts and dicts as such, which its encoder makes members of."""
    kinds = ("png", "jpg", "webp", "jpeg")
    pictures = [noise(i) if i % 2 == 0 else noise(i, 1, 1).resize((8, 8)) for i in range(8)]
    written = [
        {"__key__": f"dir.1/{i}.a", kinds[i % 4]: pictures[i], "txt": f"noise {i}",
         "json": {"i": i, "score": i / 2}}
        for i in range(8)
    ]  # fmt: skip
    for sample in written:  # of webp webdataset takes bytes only
        if "webp" in sample:
            sample["webp"] = encode(sample["webp"], "WEBP", lossless=True)
    if writer == "TarWriter":
        with wds.TarWriter(str(tmp_path / "0.tar")) as tar:
            for sample in written:
                tar.write(sample)
    else:
        with wds.ShardWriter(str(tmp_path / "%d.tar"), maxcount=3, verbose=0) as tar:
            for sample in written:
                tar.write(sample)
        assert len(shards_in(tmp_path)) == 3
    reads = reader(8, filters=())
    chance = np.random.default_rng(0)
    found = [item for shard in shards_in(tmp_path) for item in reads.candidates(shard, "train")]
    assert len(found) == 8
    for i, item in enumerate(found):
        assert isinstance(item, Candidate), item
        assert json.loads(item.encoded.members["json"]) == {"i": i, "score": i / 2}
        made = reads.decode(item, chance)
        assert isinstance(made, Sample), made
        assert (made.key, made.caption) == (f"dir.1/{i}.a", f"noise {i}")
        off = np.abs(made.image.astype(int) - np.asarray(pictures[i]))
        assert off.max() <= (3 if kinds[i % 4].startswith("jp") else 0), kinds[i % 4]


# -- img2dataset itself ----------------------------------------------------------------------------

TOOL = os.environ.get("SALON_IMG2DATASET")
SHOWN = {"similarity": 0.3, "punsafe": 0.01, "pwatermark": 0.1, "score": 6.0}
# What becomes of a link, by what the list or the server says of it; None: it is trained on.
LINKS: list[tuple[str | None, dict[str, Any]]] = [
    *[(None, {"score": 5.01 + i / 10}) for i in range(10)],
    (None, {"size": (512, 700), "pwatermark": 0.499, "punsafe": 0.499}),
    ("filter:aesthetic", {"score": 5.0}),
    ("filter:aesthetic", {"score": 4.0, "pwatermark": 0.9}),  # the first filter counts it
    ("filter:aesthetic_missing", {"score": float("nan")}),
    ("filter:aesthetic_missing", {"score": None}),
    ("filter:width", {"size": (511, 700)}),
    ("filter:height", {"size": (700, 511)}),
    ("filter:height", {"size": (700, 300)}),
    ("filter:watermark", {"pwatermark": 0.5}),
    ("filter:unsafe", {"punsafe": 0.97}),
    ("filter:unsafe_missing", {"punsafe": None}),
    ("dead", {"url": "gone.jpg"}),
    ("dead", {"url": "page.jpg"}),
    ("dead", {"url": "empty.jpg"}),
    ("dead", {"url": "http://127.0.0.1:1/refused.jpg"}),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()


def color(number: int) -> tuple[int, int, int]:
    return 40 + 6 * number, 250 - 7 * number, 30 + 50 * (number % 4)


def write_links(path: Path, address: str, folder: Path, column: str) -> None:
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html>moved</html>")
    (folder / "empty.jpg").touch()
    rows = []
    for number, (_, changes) in enumerate(LINKS):
        told = {**SHOWN, "size": (600, 520), "url": f"{number}.jpg", **changes}
        size, url = told.pop("size"), told.pop("url")
        if "url" not in changes:
            image = Image.new("RGB", size, color(number))
            (folder / url).write_bytes(encode(image, "JPEG", quality=95))
        told[column] = told.pop("score")
        where = url if "://" in url else address + url
        rows.append({"url": where, "caption": f"link {number}, é", **told})
    pq.write_table(pa.Table.from_pylist(rows), path)


def recipe() -> tuple[dict[str, str], list[str]]:
    """The environment and the words of the command that conf/data/laion.yaml gives."""
    lines = [
        line.removeprefix("#").strip()
        for line in (ROOT / "conf" / "data" / "laion.yaml").read_text().splitlines()
        if line.startswith("#")
    ]
    first = next(i for i, line in enumerate(lines) if " img2dataset " in line)
    command = ""
    for line in lines[first:]:
        command += line.removesuffix("\\")
        if not line.endswith("\\"):
            break
    words = shlex.split(command)
    tool = words.index("img2dataset")
    return dict(word.split("=", 1) for word in words[:tool]), words[tool + 1 :]


@pytest.mark.parametrize("column", ["AESTHETIC_SCORE", "aesthetic"])
def test_what_img2dataset_downloads_is_filtered_and_trained_on(
    column: str, hydra_conf: None, web: tuple[str, Path], tmp_path: Path
) -> None:
    """The recipe of conf/data/laion.yaml, with few links, processes and threads."""
    if TOOL is None:
        pytest.skip(
            "SALON_IMG2DATASET names no img2dataset. It wants an environment of its own: "
            "python3.11 -m venv img2ds && img2ds/bin/pip install img2dataset, then "
            "SALON_IMG2DATASET=$PWD/img2ds/bin/img2dataset pytest tests/data/test_interop.py"
        )
    write_links(tmp_path / "links.parquet", *web, column)
    environment, words = recipe()
    changes = {
        "--url_list": str(tmp_path / "links.parquet"), "--output_folder": str(tmp_path / "train"),
        "--number_sample_per_shard": "9", "--processes_count": "1", "--thread_count": "4",
    }  # fmt: skip
    for name, value in changes.items():
        words[words.index(name) + 1] = value
    words = [word.replace("AESTHETIC_SCORE", column) for word in words]
    private = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    proxies = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [TOOL, *words], env=private | proxies | environment, cwd=tmp_path, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(shards_in(tmp_path / "train")) == 3, done.stderr[-3000:]

    good = {f"link {i}, é": color(i) for i, (fate, _) in enumerate(LINKS) if fate is None}
    fates = Counter(fate for fate, _ in LINKS if fate not in (None, "dead"))
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    places = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val"]
    sizes = ["data.resolution=64", "data.lanes=1", f"data.window={len(good)}", "data.workers=0"]
    cfg = compose("train", ["data=laion", *places, *sizes, f"batch_size={len(good)}"])
    data = build(cfg.data, "data")

    assert check(data, split="train", decode=True, out=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["used"], report["bad"], report["filtered"]) == (len(good), 0, fates.total())
    dropped = report["sources"]["train"]["dropped"]
    assert {reason: told["count"] for reason, told in dropped.items()} == fates

    batches = iter(data.train_dataloader())
    for _ in range(2):  # passes
        batch = data.on_before_batch_transfer(next(batches), 0)
        assert sorted(batch.captions) == sorted(good)
        assert batch.images.shape == (len(good), 3, 64, 64)
        for image, caption in zip(batch.images, batch.captions, strict=True):
            expected = torch.tensor(good[caption]) / 127.5 - 1
            assert (image.mean((1, 2)) - expected).abs().max() < 0.03, caption
    assert data.tally.used == {"train": len(good)}, "the second pass is still being trained on"
    assert data.tally.bad == 0
    assert {reason for _, reason in data.tally.dropped} <= set(fates)
    assert sorted(data.captions("val", 99)) == sorted(good)

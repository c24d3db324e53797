"""Fashion-MNIST (Xiao et al., 2017) and CIFAR-10 (Krizhevsky, 2009): small pictures of ten classes.

Both are read from the plain binary files that their authors publish. CIFAR-10's Python version is
a pickle, which can run anything when it is opened; its binary version holds the same pictures.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.utils import download_and_extract_archive, download_url

from salon.data.convert.base import BadItem, Item, Source
from salon.data.convert.common import dealt, lines, phrased, require, shares

Split = list[tuple[str, int]]  # the official part, and the place in it

# The official class name, and what a caption calls it.
GARMENTS = {
    "T-shirt/top": "a t-shirt",
    "Trouser": "a pair of trousers",
    "Pullover": "a pullover",
    "Dress": "a dress",
    "Coat": "a coat",
    "Sandal": "a sandal",
    "Shirt": "a shirt",
    "Sneaker": "a sneaker",
    "Bag": "a bag",
    "Ankle boot": "an ankle boot",
}
IDX_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}


class FashionMNIST(Source):
    """The idx files, plain or gzipped, as torchvision lays them out or all in one folder."""

    name = "fashion_mnist"
    licence = "MIT; the LICENSE file of its repository"
    HOME = "the Fashion-MNIST repository of Zalando Research (github.com/zalandoresearch)"
    TEMPLATES = (
        "a photo of {}",
        "a grayscale photo of {}",
        "{} on a black background",
        "a product photo of {}",
    )
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # named by its repository

    def __init__(self, root: Path, *, val_share: float, download: bool) -> None:
        if download:
            for name, md5 in IDX_MD5.items():
                if not self._file(root, name).exists():
                    _download(download_url, self.URL + name + ".gz", root, md5=md5)
        self.pictures, self.labels = {}, {}
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
            self.pictures[part] = _idx(self._file(root, images), 3, self.HOME)  # (n, H, W)
            self.labels[part] = _idx(self._file(root, labels), 1, self.HOME)  # (n)
            if len(self.pictures[part]) != len(self.labels[part]):
                raise ValueError(
                    f"root={str(root)!r}: {images} has {len(self.pictures[part])} pictures and "
                    f"{labels} {len(self.labels[part])} labels. Download both again"
                )
        sizes = {part: len(labels) for part, labels in self.labels.items()}
        self.entries, self.settings = _official(sizes, val_share)

    @staticmethod
    def _file(root: Path, name: str) -> Path:
        places = [folder / (name + end) for folder in (root, root / "FashionMNIST" / "raw")
                  for end in ("", ".gz")]  # fmt: skip
        return next((path for path in places if path.exists()), root / f"{name}.gz")

    def item(self, split: str, index: int) -> Item:
        part, place = self.entries[split][index]
        name, noun = _of(list(GARMENTS.items()), int(self.labels[part][place]))
        captions = phrased(self.TEMPLATES, noun, (int(part == "test"), place))
        meta = {"class": name, "part": part, "index": place}
        return Item(Image.fromarray(self.pictures[part][place]), captions, meta)


class CIFAR10(Source):
    """The binary version: records of one label and 3 x 32 x 32 values."""

    name = "cifar10"
    licence = "none stated; its page asks to cite Krizhevsky's report of 2009"
    HOME = "the CIFAR-10 page of Alex Krizhevsky (www.cs.toronto.edu/~kriz/cifar.html)"
    TEMPLATES = ("a photo of {a}", "a small photo of {a}", "a picture of {a}", "{a}")
    URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # stated on its page
    FOLDER = "cifar-10-batches-bin"
    RECORD = 1 + 3 * 32 * 32

    def __init__(self, root: Path, *, val_share: float, download: bool) -> None:
        if download and not (root / self.FOLDER).exists():
            _download(download_and_extract_archive, self.URL, root, md5=self.MD5)
        folder = root / self.FOLDER if (root / self.FOLDER).exists() else root
        hint = f"{self.HOME}, the binary version"
        names = require(folder / "batches.meta.txt", setting="root", home=hint)
        self.classes = [name for _, name in lines(names)]
        files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        self.records = {
            part: np.concatenate(
                [self._read(require(folder / name, setting="root", home=hint)) for name in batches]
            )
            for part, batches in files.items()
        }  # (n, 1 + 3 * 32 * 32)
        sizes = {part: len(records) for part, records in self.records.items()}
        self.entries, self.settings = _official(sizes, val_share)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        values = np.fromfile(path, np.uint8)
        if values.size % self.RECORD:
            raise ValueError(
                f"{path} has {values.size:,} bytes, which is no multiple of {self.RECORD:,}: it is "
                f"not a whole file of the binary version. Download it again from {self.HOME}"
            )
        return values.reshape(-1, self.RECORD)

    def item(self, split: str, index: int) -> Item:
        part, place = self.entries[split][index]
        record = self.records[part][place]
        name = _of(self.classes, int(record[0]))
        pixels = np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        captions = phrased(self.TEMPLATES, name, (int(part == "test"), place))
        return Item(
            Image.fromarray(pixels), captions, {"class": name, "part": part, "index": place}
        )


def _official(sizes: dict[str, int], val_share: float) -> tuple[dict[str, Split], dict[str, Any]]:
    """The official parts, val cut off train, and the settings that decide this."""
    entries: dict[str, Split] = {"train": [], "val": [], "test": []}
    cut = shares(val_share=val_share)
    for part, size in sizes.items():
        for place in range(size):
            split = dealt(f"{part}/{place}", cut) if part == "train" else part
            entries[split].append((part, place))
    return entries, {"val_share": val_share}


def _of(classes: Sequence[Any], label: int) -> Any:
    if label >= len(classes):
        raise BadItem(f"a label beyond the {len(classes)} classes")
    return classes[label]


def _idx(path: Path, dimensions: int, home: str) -> NDArray[np.uint8]:
    """An idx file of bytes: a magic number, a size for each dimension, the values."""
    require(path, setting="root", home=home)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
            size = int(np.prod(shape, dtype=object))
            if magic != 0x0800 + dimensions or size > 1 << 30:
                raise ValueError(f"it begins with {magic:#x} and says {shape}")
            values = np.frombuffer(file.read(size), np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(
            f"{path} is no whole idx file of {dimensions} dimensions ({error}). Download it again "
            f"from {home}"
        ) from error
    return values


def _download(fetch: Any, url: str, root: Path, *, md5: str) -> None:
    try:
        fetch(url, str(root), md5=md5)
    except (RuntimeError, URLError, OSError) as error:
        raise ValueError(
            f"download=true: {url} cannot be fetched ({error}). Fetch it by other means and put it "
            f"into {root}"
        ) from error

"""Oxford 102 Flowers (Nilsback and Zisserman, 2008) and CUB-200-2011 (Wah et al., 2011).

Captions are those that Reed et al. (2016) collected, ten for each picture, where their folder is
given; else they are made of class names. Their class lists, which divide the classes between train,
val and test, are used where they lie beside the captions; else the official split of the pictures.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from salon.data.convert.base import Item, Source
from salon.data.convert.common import dealt, inside, lines, phrased, require, shares, told_by
from salon.data.convert.flower_names import FLOWERS

REED = "the release of Reed et al., 2016 (github.com/reedscot/icml2016)"
# In this order: a class of trainval that stands in val is for val.
LISTS = {
    "trainvalclasses.txt": "train",
    "trainclasses.txt": "train",
    "valclasses.txt": "val",
    "testclasses.txt": "test",
}


PARTS = {"trnid": "train", "valid": "val", "tstid": "test"}  # of the flowers


class Picture(NamedTuple):
    number: int  # the data set's own
    file: str  # below the folder of pictures
    label: int  # from 1, as the data set counts
    part: str  # the official split
    box: tuple[float, ...] | None  # left, top, width, height in pixels


class Reed:
    """The captions folder and the class lists beside it; either may be absent."""

    def __init__(self, captions: Path | None, root: Path) -> None:
        self.texts: Path | None = None
        places = [root]
        if captions is not None:
            inner = captions / "text_c10"
            self.texts = inner if inner.is_dir() else captions
            require(self.texts, setting="captions", home=REED)
            places = [captions, captions.parent, root] if self.texts is captions else [captions]
        self.lists = next((at for at in places if (at / "testclasses.txt").is_file()), None)

    def captions(self, file: str) -> tuple[str, ...]:
        assert self.texts is not None
        return tuple(told_by(inside(self.texts, file)).splitlines())

    def deal(
        self, pictures: Sequence[Picture], folders: Sequence[str], val_share: float
    ) -> dict[str, list[Picture]]:
        """`folders` are the classes by their names in the lists. Val is cut off where none is."""
        given: dict[str, str] = {}
        if self.lists is not None:
            for name, split in LISTS.items():
                if (self.lists / name).is_file():
                    listed = {line for _, line in lines(self.lists / name)}
                    if split == "test" and (twice := listed & set(given)):
                        raise ValueError(f"{self.lists / name}: {min(twice)} is also in train")
                    given |= dict.fromkeys(listed, split)
            if absent := {folders[p.label - 1] for p in pictures} - set(given):
                raise ValueError(
                    f"{self.lists}: {min(absent)} is in none of {', '.join(LISTS)}, nor are "
                    f"{len(absent) - 1} others. Complete the lists from {REED}, or remove them for "
                    "the official split"
                )
        splits = [given[folders[p.label - 1]] if given else p.part for p in pictures]
        cut = {} if "val" in splits else shares(val_share=val_share)
        dealt_to: dict[str, list[Picture]] = {"train": [], "val": [], "test": []}
        for picture, split in zip(pictures, splits, strict=True):
            if split == "train":
                split = dealt(str(picture.number), cut)
            dealt_to[split].append(picture)
        return dealt_to

    def settings(self, val_share: float) -> dict[str, Any]:
        return {
            "captions": self.texts is not None,
            "split": "official" if self.lists is None else "classes",
            "val_share": val_share,
        }


class Flowers102(Source):
    """jpg/image_00001.jpg and the two .mat files; captions in class_00001/image_06734.txt."""

    name = "flowers102"
    licence = "none stated on its page; the photographs belong to their owners"
    HOME = "the 102 Category Flower Dataset page of Oxford VGG (www.robots.ox.ac.uk/~vgg)"
    TEMPLATES = (
        "a photo of {a} flower",
        "a picture of {a} flower",
        "a flower called {}",
        "{}, a kind of flower",
    )

    def __init__(
        self,
        root: Path,
        *,
        captions: Path | None,  # Reed's text_c10, or the folder that has it; None: class names
        names: Path | None,  # a file of 102 lines; None: FLOWERS
        val_share: float,  # of train, where class lists without a val are used
    ) -> None:
        root = root / "flowers-102" if (root / "flowers-102").is_dir() else root
        self.folder = require(root / "jpg", setting="root", home=self.HOME)
        labels = self._mat(root / "imagelabels.mat", ["labels"])["labels"]
        parts = self._mat(root / "setid.mat", list(PARTS))
        self.names = list(FLOWERS) if names is None else [line for _, line in lines(names)]
        if labels.size and not 1 <= labels.min() <= labels.max() <= len(self.names):
            raise ValueError(
                f"names={names}: {len(self.names)} names for labels from {labels.min()} to "
                f"{labels.max()}. Expected a name in each line, in the order of the labels"
            )
        pictures = []
        for key, part in PARTS.items():
            for number in map(int, parts[key]):
                if not 1 <= number <= labels.size:
                    raise ValueError(f"{root / 'setid.mat'}: {number} is the number of no picture")
                file = f"image_{number:05d}.jpg"
                pictures.append(Picture(number, file, int(labels[number - 1]), part, None))
        self.reed = Reed(captions, root)
        folders = [f"class_{label:05d}" for label in range(1, len(self.names) + 1)]
        self.entries = self.reed.deal(pictures, folders, val_share)
        self.settings = {**self.reed.settings(val_share), "names": self.names}

    def _mat(self, path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
        require(path, setting="root", home=self.HOME)
        try:
            read = loadmat(path, variable_names=keys)
            return {key: read[key].ravel().astype(np.int64) for key in keys}
        except (MatReadError, KeyError, ValueError, TypeError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is no Matlab file with {', '.join(keys)} ({error}). Download it again "
                f"from {self.HOME}"
            ) from error

    def item(self, split: str, index: int) -> Item:
        number, file, label, part, _ = self.entries[split][index]
        name = self.names[label - 1]
        captions = phrased(self.TEMPLATES, name, (number,))
        if self.reed.texts is not None:
            captions = self.reed.captions(f"class_{label:05d}/{Path(file).stem}.txt")
        meta = {"class": name, "label": label, "file_name": f"jpg/{file}", "part": part}
        return Item(inside(self.folder, file).read_bytes(), captions, meta)


class CUB(Source):
    """images.txt and its companions; captions in 001.Black_footed_Albatross/FILE.txt."""

    name = "cub"
    licence = "none in the archive; the photographs, from Flickr, belong to their owners"
    HOME = "the CUB-200-2011 page of Caltech Vision (www.vision.caltech.edu/datasets)"
    TEMPLATES = ("a photo of {a}", "a picture of {a}", "a bird called {}", "{a}, a kind of bird")

    def __init__(
        self,
        root: Path,
        *,
        captions: Path | None,  # Reed's text_c10, or the folder that has it; None: class names
        val_share: float,  # of train, where no list names classes for val
    ) -> None:
        root = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
        self.folder = require(root / "images", setting="root", home=self.HOME)
        classes = self._table(root / "classes.txt", 1)
        labels, files = self._table(root / "image_class_labels.txt", 1), self._files(root)
        trained = self._table(root / "train_test_split.txt", 1)
        boxes = self._table(root / "bounding_boxes.txt", 4)
        self.classes = [classes[i][0] for i in sorted(classes)]
        if sorted(classes) != list(range(1, len(classes) + 1)):
            raise ValueError(f"{root / 'classes.txt'}: expected the numbers from 1 on")
        pictures = []
        for number, file in files.items():
            try:
                label = int(labels[number][0])
                part = {"1": "train", "0": "test"}[trained[number][0]]
                box = tuple(_finite(edge) for edge in boxes[number])
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"{root}: picture {number} of images.txt has no valid line in "
                    f"image_class_labels.txt, train_test_split.txt or bounding_boxes.txt ({error})"
                ) from error
            if label not in classes:
                raise ValueError(f"{root / 'image_class_labels.txt'}: {label} is no class")
            pictures.append(Picture(number, file, label, part, box))
        self.reed = Reed(captions, root)
        self.entries = self.reed.deal(pictures, self.classes, val_share)
        self.settings = self.reed.settings(val_share)

    def _files(self, root: Path) -> dict[int, str]:
        return {number: " ".join(rest) for number, rest in self._table(root / "images.txt").items()}

    def _table(self, path: Path, columns: int | None = None) -> dict[int, list[str]]:
        """A number and so many words in each line; None: at least one."""
        found = {}
        for at, line in lines(require(path, setting="root", home=self.HOME)):
            number, *words = line.split()
            if not number.isdecimal() or len(words) != (columns or max(1, len(words))):
                raise ValueError(f"{path}:{at}: expected a number and {columns or 'a'} words")
            found[int(number)] = words
        return found

    def item(self, split: str, index: int) -> Item:
        number, file, label, part, box = self.entries[split][index]
        folder = self.classes[label - 1]
        name = folder.partition(".")[2].replace("_", " ").lower() or folder
        captions = phrased(self.TEMPLATES, name, (number,))
        if self.reed.texts is not None:
            captions = self.reed.captions(str(Path(file).with_suffix(".txt")))
        meta = {
            "class": name, "label": label, "file_name": f"images/{file}", "part": part,
            "image_id": number, "bounding_box": box,
        }  # fmt: skip
        return Item(inside(self.folder, file).read_bytes(), captions, meta)


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no number of pixels")
    return value

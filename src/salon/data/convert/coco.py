"""COCO Captions (Chen et al., 2015): photographs of everyday scenes, five captions each."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from salon.data.convert.base import Item, Source
from salon.data.convert.common import dealt, inside, require, shares, text


class Photograph(NamedTuple):
    number: int  # COCO's image id
    file: str
    part: str  # the official split
    captions: tuple[str, ...]
    licence: dict[str, Any]  # of this photograph


class COCO(Source):
    """The release of 2017: train2017/, val2017/, annotations/captions_*2017.json.

    The captions of the official test set are not published, so test is cut off train.
    """

    name = "coco"
    licence = (
        "captions CC BY 4.0, photographs under Flickr's terms and each its own licence; the terms "
        "of use on its page"
    )
    HOME = "the COCO download page (cocodataset.org)"

    def __init__(self, root: Path, *, test_share: float) -> None:
        self.root = root
        self.entries: dict[str, list[Photograph]] = {"train": [], "val": [], "test": []}
        cut = shares(test_share=test_share)
        for part in ("train", "val"):
            require(root / f"{part}2017", setting="root", home=self.HOME)
            path = root / "annotations" / f"captions_{part}2017.json"
            for photograph in _read(require(path, setting="root", home=self.HOME), part):
                split = dealt(str(photograph.number), cut) if part == "train" else part
                self.entries[split].append(photograph)
        self.settings = {"test_share": test_share}

    def item(self, split: str, index: int) -> Item:
        number, file, part, captions, licence = self.entries[split][index]
        picture = inside(self.root / f"{part}2017", file).read_bytes()
        meta = {"image_id": number, "file_name": f"{part}2017/{file}", "licence": licence}
        return Item(picture, captions, meta)


def _read(path: Path, part: str) -> list[Photograph]:
    """In the order of image ids, the captions of each in that of theirs."""
    try:
        told = json.loads(text(path))
        licences = {
            licence["id"]: {"name": str(licence["name"]), "url": str(licence["url"])}
            for licence in told.get("licenses", [])
        }
        captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for said in told["annotations"]:
            captions[int(said["image_id"])].append((int(said["id"]), str(said["caption"])))
        return [
            Photograph(
                int(image["id"]), str(image["file_name"]), part,
                tuple(caption for _, caption in sorted(captions.get(int(image["id"]), []))),
                licences.get(image.get("license"), {}),
            )
            for image in sorted(told["images"], key=lambda image: int(image["id"]))
        ]  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no COCO captions file ({type(error).__name__}: {error}). Download it again "
            f"from {COCO.HOME}"
        ) from error

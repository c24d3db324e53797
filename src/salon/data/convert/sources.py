"""The sources by name, and what their settings are when nothing else is said."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from salon.data.convert.base import Source
from salon.data.convert.coco import COCO
from salon.data.convert.folder import Folder
from salon.data.convert.small import CIFAR10, FashionMNIST
from salon.data.convert.species import CUB, Flowers102

# Called with the folder in which the data set lies, and settings by name.
SOURCES: dict[str, Callable[..., Source]] = {
    "folder": Folder,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "flowers102": Flowers102,
    "cub": CUB,
    "coco": COCO,
}


class Setting(NamedTuple):
    default: Any
    kind: type  # of a value that is not None
    help: str


VAL = Setting(0.05, float, "share of train that becomes val")
DOWNLOAD = Setting(False, bool, "fetch the files from the authors' site where they are missing")
CAPTIONS = Setting(None, Path, "Reed's text_c10 folder; none: captions from class names")
SETTINGS: dict[str, dict[str, Setting]] = {
    "folder": {
        "table": Setting(None, str, "a .jsonl, .csv or .parquet of file names and captions"),
        "file_column": Setting("file_name", str, "the column of file names"),
        "caption_column": Setting(None, str, "the column of captions; none: caption or text"),
        "val_share": VAL._replace(help="share that becomes val, where no folder is named so"),
        "test_share": Setting(0.05, float, "share that becomes test, likewise"),
        "licence": Setting("not stated", str, "of the pictures, for dataset.json"),
    },
    "fashion_mnist": {"val_share": VAL, "download": DOWNLOAD},
    "cifar10": {"val_share": VAL, "download": DOWNLOAD},
    "flowers102": {
        "captions": CAPTIONS,
        "names": Setting(None, Path, "a file of 102 class names; none: the usual ones"),
        "val_share": VAL._replace(help="share of train that becomes val, with class lists only"),
    },
    "cub": {"captions": CAPTIONS, "val_share": VAL},
    "coco": {"test_share": Setting(0.05, float, "share of train that becomes test")},
}


def source(name: str, root: Path, settings: Mapping[str, Any]) -> Source:
    """Raises ValueError for an unknown source or setting, naming the nearest known one."""
    _known("source", name, SOURCES)
    for setting in settings:
        _known(f"setting of {name}", setting, SETTINGS[name])
    defaults = {key: setting.default for key, setting in SETTINGS[name].items()}
    return SOURCES[name](root, **{**defaults, **settings})


def _known(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0)
        raise ValueError(
            f"{name!r} is no {what}; the nearest is {near[0]!r}. Known are {', '.join(known)}"
        )

"""A folder of pictures with captions, in any of the forms in which people keep them.

a.jpg, a.txt                     the caption beside each picture
metadata.jsonl                   {"file_name": "a.jpg", "text": "..."}, as Hugging Face's imagefolder
metadata.csv, metadata.parquet   the same as columns; several rows of a picture are its captions
train/, val/, test/              each as one of the above; without them, splits are cut off
"""  # noqa: E501

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from salon.data.convert.base import Item, Source
from salon.data.convert.common import dealt, inside, shares, text, told_by

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMNS = ("caption", "text", "captions")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Entry(NamedTuple):
    name: str  # of the picture, below the root
    captions: tuple[str, ...] | None  # None: in the .txt beside it
    meta: dict[str, Any]


class Folder(Source):
    name = "folder"

    def __init__(
        self,
        root: Path,
        *,
        table: str | None,  # a .jsonl, .csv or .parquet below the root; None looks for TABLES
        file_column: str,
        caption_column: str | None,  # None takes the first of CAPTION_COLUMNS that is there
        val_share: float,  # of what has no folder of its own
        test_share: float,
        licence: str,
    ) -> None:
        if not root.is_dir():
            raise ValueError(f"root={str(root)!r}: expected a folder of pictures with captions")
        self.root, self.licence = root, licence
        self.columns = (file_column, caption_column)
        cut = shares(val_share=val_share, test_share=test_share)
        folders = [name for name in SPLITS if (root / name).is_dir()]
        if "train" not in folders:  # then a folder `test` is as good a name as any
            folders = []
        own = {SPLITS[name] for name in folders}
        cut = {split: share for split, share in cut.items() if split not in own}
        self.entries: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
        for entry in self._found(table, folders):
            first = Path(entry.name).parts[0] if Path(entry.name).parts else ""
            split = SPLITS[first] if first in folders else "train"
            self.entries[dealt(entry.name, cut) if split == "train" else split].append(entry)
        told = json.dumps([self.entries[split] for split in self.entries]).encode()
        self.settings = {"entries": hashlib.sha256(told).hexdigest()}

    def item(self, split: str, index: int) -> Item:
        name, captions, meta = self.entries[split][index]
        path = inside(self.root, name)
        if captions is None:
            beside = Path(name).with_suffix(".txt")
            captions = (told_by(inside(self.root, str(beside))),)
        return Item(path.read_bytes(), captions, {**meta, "file_name": name})

    def _found(self, table: str | None, folders: list[str]) -> Iterator[Entry]:
        """A table at the root speaks of the whole folder; else each split has a form of its own."""
        if table is not None and not (self.root / table).is_file():
            raise ValueError(f"table={table!r}: no such file in {self.root}")
        if whole := table or _table(self.root):
            yield from self._listed(Path(whole))
            return
        for below in folders or [""]:
            inner = _table(self.root / below)
            yield from self._listed(Path(below, inner)) if inner else self._walked(below)

    def _walked(self, below: str) -> Iterator[Entry]:
        found, captioned = [], False
        for folder, folders, files in os.walk(self.root / below):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                path = Path(folder, file)
                if path.suffix.lower() in PICTURES and not file.startswith("."):
                    found.append(Entry(path.relative_to(self.root).as_posix(), None, {}))
                    captioned = captioned or path.with_suffix(".txt").exists()
        if not captioned:
            raise ValueError(
                f"{self.root / below}: no picture with a caption. Expected pictures "
                f"({', '.join(PICTURES)}) each with a .txt of the same name beside it, or one of "
                f"{', '.join(TABLES)} (another file: table=NAME)"
            )
        yield from found

    def _listed(self, table: Path) -> Iterator[Entry]:
        """The pictures of a table in the order of their first rows, each with all its captions."""
        path, (file_column, asked) = self.root / table, self.columns
        entries: dict[str, Entry] = {}
        rows = list(_rows(path))
        known = {name: None for row in rows for name in row}
        column = asked or next((name for name in CAPTION_COLUMNS if name in known), None)
        if file_column not in known or column not in known:
            raise ValueError(
                f"{path} has the columns {', '.join(known) or 'of no row'}; expected "
                f"file_column={file_column} and caption_column="
                f"{asked or ' or '.join(CAPTION_COLUMNS)}. Name the two"
            )
        for row in rows:
            file = row.get(file_column)
            # No name is a picture that cannot be read, as one that is not there.
            name = (table.parent / str(file)).as_posix() if file else ""
            meta = {k: v for k, v in row.items() if k not in (file_column, column)}
            entry = entries.setdefault(name, Entry(name, (), meta))
            captions = (*(entry.captions or ()), *_texts(row.get(column or "")))
            entries[name] = entry._replace(captions=captions)
        yield from entries.values()


def _table(folder: Path) -> str | None:
    return next((name for name in TABLES if (folder / name).is_file()), None)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(caption for caption in values if isinstance(caption, str))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"table={path.name!r}: expected a {', '.join(readers)} file")
    for row in readers[path.suffix.lower()](path):
        yield {str(name): _plain(value) for name, value in row.items() if name is not None}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines(): a json may hold line separators of Unicode as they are.
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is no json ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected an object of names and values")
            yield row


def _csv(path: Path) -> Iterable[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is no csv ({error})") from error


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file ({error})") from error


def _plain(value: Any) -> Any:
    """What a json can hold: no NaN, no infinity, and other types as their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)

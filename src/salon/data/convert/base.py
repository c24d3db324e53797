"""From a data set as its authors publish it to LAION-style shards: what a source is, the writer.

    OUT/dataset.json               what the shards were made of and how; a second run must match it
    OUT/SPLIT/00000.tar            KEY.jpg|png|webp, KEY.txt, KEY.json for each sample
    OUT/SPLIT/00000.parquet        one row for each sample, also for those that failed
    OUT/SPLIT/00000_stats.json     how many there are; written last, so that it marks a whole shard

The same source and settings give the same bytes, on every machine and after every interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from salon import files
from salon.data.image import BOMBS, UNREADABLE

log = logging.getLogger(__name__)

LAYOUT = 1  # raised with every change of what a source's shards hold
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # by Pillow's format
COLUMNS = {
    "key": pa.string(),
    "caption": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "sha256": pa.string(),
}


class Item(NamedTuple):
    picture: bytes | Image.Image  # bytes are copied as they are; an Image is written as PNG
    captions: tuple[str, ...]  # the first is KEY.txt; all are in the json
    meta: dict[str, Any]  # into the json, as it is


class BadItem(Exception):
    """An item that cannot be used; the message says why and is the same on every machine."""


class Source(ABC):
    """A data set as it lies on disk: which splits it has, and item i of each.

    Constructors raise ValueError for whatever is missing; `item` raises BadItem or OSError.
    """

    name: str
    licence: str  # in short, and where it is stated
    settings: dict[str, Any]  # what decides the shards, as plain values: no paths of this machine
    entries: Mapping[str, Sequence[Any]]  # split -> what `item` makes an Item of

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, entries in self.entries.items() if len(entries))

    def count(self, split: str) -> int:
        return len(self.entries[split])

    @abstractmethod
    def item(self, split: str, index: int) -> Item: ...


class Row(NamedTuple):
    """What a shard holds of a sample: its json and picture, or only why there is none."""

    record: dict[str, Any]  # the json, with COLUMNS among its names
    picture: bytes | None  # None where it failed: then only the parquet has the record
    extension: str


# -- the conversion ------------------------------------------------------------------------------


def convert(
    source: Source,
    out: Path,
    *,
    shard_size: int,  # samples in a shard, at most
    splits: Sequence[str] | None,  # None: all that the source has
) -> dict[str, int]:
    """Split -> samples written. Shards that an earlier run finished are left as they are.

    A picture that cannot be read is a row of the parquet with status `failed`, and is counted by
    `failures`. Raises ValueError where none of a split can be read, where `out` holds something
    else or cannot be written, and for a split that the source does not have.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: expected at least 1 sample, such as 1000")
    chosen = list(dict.fromkeys(source.splits if splits is None else splits))
    if unknown := [split for split in chosen if split not in source.splits]:
        raise ValueError(
            f"splits={unknown}: {source.name} has {', '.join(source.splits) or 'no pictures'} here"
        )
    if not chosen:
        raise ValueError(f"{source.name} has no pictures here; expected at least one")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock"):
            _claim(out, source, shard_size)
            return _convert_all(source, out, shard_size, chosen)
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written ({error}); expected a folder with space for "
            f"{sum(map(source.count, chosen)):,} pictures. Choose another"
        ) from error


def failures(out: Path) -> dict[str, dict[str, int]]:
    """Split -> error message -> how many failed with it, in all shards that `out` holds."""
    found: dict[str, Counter[str]] = {}
    for path in sorted(out.glob("*/*_stats.json")):
        counts = json.loads(path.read_text())["status_dict"]
        found.setdefault(path.parent.name, Counter()).update(
            {message: n for message, n in counts.items() if message != "success"}
        )
    return {split: dict(counts) for split, counts in found.items()}


def _claim(out: Path, source: Source, shard_size: int) -> None:
    """Leaves the fingerprint in `out`, or finds its own there."""
    told = {
        "layout": LAYOUT,
        "name": source.name,
        "settings": source.settings,
        "shard_size": shard_size,
        "samples": {split: source.count(split) for split in source.splits},
    }
    told = json.loads(json.dumps(told))  # as it is read back: tuples are lists
    path = out / "dataset.json"
    if not path.exists():
        if any(out.glob("*.tar")) or any(out.glob("*/*.tar")):
            raise ValueError(f"out={str(out)!r} holds shards of something else. Choose another")
        text = json.dumps({**told, "licence": source.licence}, indent=2, sort_keys=True)
        files.write(path, text)
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what a conversion leaves there. Choose another folder")
    for name, value in told.items():
        if found.get(name) != value:
            raise ValueError(
                f"out={str(out)!r} was begun with {name}={found.get(name)!r} and is now asked to "
                f"go on with {value!r} (see {path}). Choose another folder, or remove this one"
            )


def _convert_all(source: Source, out: Path, size: int, splits: Sequence[str]) -> dict[str, int]:
    written = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        total = sum(map(source.count, splits))
        task = progress.add_task(f"converting {source.name}", total=total)
        for split in splits:
            folder, counts = out / split, Counter[str]()
            folder.mkdir(exist_ok=True)
            for shard, first in enumerate(range(0, source.count(split), size)):
                indices = range(first, min(first + size, source.count(split)))
                done = folder / f"{shard:05d}_stats.json"
                if not done.exists():
                    width = max(4, len(str(size - 1)))
                    write_shard(folder, shard, _rows(source, split, indices, shard, width))
                counts.update(json.loads(done.read_text())["status_dict"])
                progress.advance(task, len(indices))
            written[split] = counts.pop("success", 0)
            _judge(folder, counts, written[split])
    return written


def _judge(folder: Path, failed: Counter[str], written: int) -> None:
    if not failed:
        return
    (message, most), several = failed.most_common(1)[0], sum(failed.values())
    if not written:
        raise ValueError(
            f"{folder.name}: none of its {several:,} pictures can be used, {most:,} of them "
            f"because: {message}. Mend the source, remove {folder} and convert again"
        )
    log.warning(
        "%s: %d of %d pictures failed, %d of them because: %s. The parquet files say which; to "
        "try a shard again, remove its _stats.json",
        folder, several, several + written, most, message,
    )  # fmt: skip


# -- a shard -------------------------------------------------------------------------------------


def write_shard(folder: Path, shard: int, rows: Iterable[Row]) -> None:
    """The three files of a shard, the stats last."""
    name, records = f"{shard:05d}", []
    with shard_writer(folder / f"{name}.tar") as tar:
        for record, picture, extension in rows:
            records.append({name: record[name] for name in COLUMNS})
            if picture is not None:
                members = {
                    extension: picture,
                    "txt": record["caption"].encode(),
                    "json": json.dumps(record, allow_nan=False).encode(),
                }
                tar.write({"__key__": record["key"], **members})
    # pyarrow too takes some paths for addresses, so the file is opened here.
    with files.aside(folder / f"{name}.parquet") as partial, open(partial, "wb") as file:
        pq.write_table(pa.Table.from_pylist(records, schema=pa.schema(COLUMNS.items())), file)
    status = Counter(record["error_message"] or "success" for record in records)
    stats = {
        "count": len(records),
        "successes": status["success"],
        "failed_to_download": 0,
        "failed_to_resize": len(records) - status["success"],  # where img2dataset counts these
        "status_dict": {message: n for message, n in sorted(status.items()) if n},
    }
    files.write(folder / f"{name}_stats.json", json.dumps(stats, indent=4))


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[wds.TarWriter]:
    """Takes samples of bytes by extension; the same ones give the same bytes of the shard."""
    # Opened here: webdataset's own opener would run a path that begins with `pipe:`. The mtime and
    # owner are fixed.
    with (
        files.aside(path) as partial,
        open(partial, "wb") as file,
        wds.TarWriter(file, mtime=0, user="salon", group="salon", encoder=False) as tar,
    ):
        yield tar


def _rows(source: Source, split: str, indices: range, shard: int, width: int) -> Iterator[Row]:
    for place, index in enumerate(indices):
        told = {"key": f"{shard:05d}{place:0{width}d}", "source": source.name, "split": split}
        try:
            yield _row(source.item(split, index), told)
        except (BadItem, OSError) as error:
            failed = dict.fromkeys(COLUMNS) | told
            failed |= {"status": "failed", "error_message": _why(error)}
            yield Row(failed, None, "")


def _row(item: Item, told: dict[str, Any]) -> Row:
    captions = [text for caption in item.captions if (text := caption.strip())]
    if not captions:
        raise BadItem("no caption")
    picture, extension, (width, height) = _encode(item.picture)
    record = {
        "original_width": width,
        "original_height": height,
        **item.meta,
        **told,
        "caption": captions[0],
        "captions": captions,
        "width": width,
        "height": height,
        "status": "success",
        "error_message": None,
        "sha256": hashlib.sha256(picture).hexdigest(),
    }
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:
        raise BadItem("a caption with half a surrogate pair, which is no UTF-8") from error
    return Row(record, picture, extension)


def _encode(picture: bytes | Image.Image) -> tuple[bytes, str, tuple[int, int]]:
    """The bytes, their extension, and the size. Given bytes are decoded to their end, and kept."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue(), "png", picture.size
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            return picture, EXTENSIONS[str(image.format)], image.size
    except (*UNREADABLE, *BOMBS) as error:
        raise BadItem(_why(error)) from error


def _why(error: Exception) -> str:
    """Nothing in it that differs between machines: Pillow names addresses, OSErrors paths."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG or WebP picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__)[:200]

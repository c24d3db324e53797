"""Reads an offline W&B run back from its `.wandb` file.

W&B offers no reader. The file is a LevelDB log (a 7-byte head, blocks of 32 KiB, records that may
be cut into pieces, each piece with its checksum) of protobuf messages.
"""

from __future__ import annotations

import copy
import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb

KNOWN = ((0, 31), (0, 32))  # the versions of wandb that this reader was written against
HEAD, BLOCK = struct.Struct("<4sHB"), 32768
PIECE = struct.Struct("<IHB")  # checksum, length, and one of:
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)  # metric or pattern -> its x-axis
    # Name -> for each version, its files: the path in the artifact -> where it waits for upload.
    artifacts: dict[str, list[dict[str, Path]]] = field(default_factory=dict)
    references: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # the same: its URI
    aliases: dict[str, list[list[str]]] = field(default_factory=dict)  # of each version
    used: set[str] = field(default_factory=set)  # artifacts that the run was made from
    types: dict[str, str] = field(default_factory=dict)  # of artifacts, by name
    metadata: dict[str, Any] = field(default_factory=dict)  # of their last versions
    files: list[str] = field(default_factory=list)  # inside folder/files
    exit_code: int | None = None  # None: never closed
    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    sweep_id: str = ""
    stats: list[dict[str, Any]] = field(default_factory=list)  # of the system

    def series(self, name: str, x: str = "images_seen") -> list[tuple[Any, Any]]:
        """(x, value) of each row that has the value; x is None where the row lacks it."""
        return [(row.get(x), row[name]) for row in self.history if name in row]


def find(folder: Path, *, patience: float = 10) -> list[OfflineRun]:
    """The runs of a run folder, oldest first.

    W&B's service writes a moment longer than `finish` takes: waits for each run's end.
    """
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    until = time.monotonic() + patience
    runs = [read(file) for file in files]
    while any(run.exit_code is None for run in runs) and time.monotonic() < until:
        time.sleep(0.05)
        runs = [read(file) for file in files]
    return runs


def read(file: Path) -> OfflineRun:
    version = tuple(int(part) for part in wandb.__version__.split(".")[:2])
    if version not in KNOWN:
        raise RuntimeError(
            f"wandb {wandb.__version__} is installed and this reader knows "
            f"{', '.join(f'{a}.{b}' for a, b in KNOWN)}: the file's format is not documented. See "
            "that tests/callbacks/test_wandb.py still passes, and add the version to KNOWN"
        )
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun(file.parent)
    for raw in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        _take(run, record.WhichOneof("record_type"), record)
    run.config.pop("_wandb", None)  # W&B's own notes
    return run


def _take(run: OfflineRun, kind: str | None, record: Any) -> None:
    if kind == "run":
        told = record.run
        run.run_id, run.name, run.project = told.run_id, told.display_name, told.project
        run.group, run.job_type, run.tags = told.run_group, told.job_type, list(told.tags)
        run.notes, run.sweep_id = told.notes, told.sweep_id
        _update(run.config, told.config.update)
    elif kind == "config":
        _update(run.config, record.config.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        run.history.append(row)
        run.summary.update(copy.deepcopy(row))
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "metric":
        run.steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "artifact":
        told, name = record.artifact, record.artifact.name
        entries = told.manifest.contents
        files = {entry.path: Path(entry.local_path) for entry in entries if not entry.ref}
        run.artifacts.setdefault(name, []).append(files)
        references = {entry.path: entry.ref for entry in entries if entry.ref}
        run.references.setdefault(name, []).append(references)
        run.aliases.setdefault(name, []).append(sorted(told.aliases))
        run.types[name] = told.type
        run.metadata[name] = json.loads(told.metadata or "{}")
        if told.use_after_commit:
            run.used.add(name)
    elif kind == "stats":
        run.stats.append({item.key: json.loads(item.value_json) for item in record.stats.item})
    elif kind == "files":
        run.files.extend(item.path for item in record.files.files)
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        node = target
        for step in path:
            node = node.setdefault(step, {})
        node[last] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    """Whole records; the cut end of a killed run is left out."""
    ident, magic, _ = HEAD.unpack_from(data)
    if (ident, magic) != (b":W&B", 0xBEE1):
        raise ValueError(f"not a W&B file: it begins with {data[: HEAD.size]!r}")
    at, parts = HEAD.size, b""
    while at + PIECE.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < PIECE.size:
            at += left
            continue
        checksum, length, kind = PIECE.unpack_from(data, at)
        piece = data[at + PIECE.size : at + PIECE.size + length]
        if (kind == 0 and not length) or len(piece) < length:
            return
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"the record at byte {at} does not match its checksum")
        at += PIECE.size + length
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts

"""Files that are whole or not there, whenever a run is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def aside(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Where to write what shall become `path` at the end; an error leaves `path` as it was.

    What is `durable` is whole even where the machine itself stops.
    """
    if path.exists() and not path.is_file():  # /dev/null and the like must not be replaced
        yield path
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: str | bytes) -> None:
    with aside(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)

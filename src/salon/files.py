"""Files that are whole or not there, whenever a run is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Where to write what shall become `path` at the end; an error leaves `path` as it was."""
    if path.exists() and not path.is_file():  # /dev/null and the like must not be replaced
        yield path
        return
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write(path: Path, content: str | bytes) -> None:
    with aside(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)

"""Files are whole or as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from salon import files


def breaks(path: Path) -> None:
    with files.aside(path) as partial:
        partial.write_text("tw")
        raise RuntimeError("broken")


def test_what_breaks_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write(path, "one")
    with pytest.raises(RuntimeError, match="broken"):
        breaks(path)
    assert path.read_text() == "one"
    files.write(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    files.write(Path(os.devnull), "gone")
    assert not Path(os.devnull).is_file()

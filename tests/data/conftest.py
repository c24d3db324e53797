from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tars import Members, folder_of, write_shard


@pytest.fixture(scope="session")
def six_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 samples of 8x8 noise in six shards."""
    return folder_of(tmp_path_factory.mktemp("shards") / "six", shards=6, each=8)


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., str]:
    """Writes a shard of (key, members) and names it."""

    def write(*samples: tuple[str, Members], name: str = "00000.tar") -> str:
        return str(write_shard(tmp_path / name, samples))

    return write

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from reading import IMAGE, reader
from salon.data.reader import Candidate, Sample
from salon.data.stream import IDLE


class Back(NamedTuple):
    pixels: np.ndarray  # (H, W, 3)
    caption: str
    told: dict[str, Any]  # the json
    members: dict[str, bytes]


@pytest.fixture
def read_back() -> Callable[..., list[Back]]:
    """A split of converted shards, as training reads it."""

    def read(out: Path, split: str, resolution: int) -> list[Back]:
        read_so_far = []
        rules = reader(resolution, image=IMAGE._replace(max_pixels=10**6))
        for shard in sorted((out / split).glob("*.tar")):
            for found in rules.candidates(str(shard), split):
                assert isinstance(found, Candidate), found
                made = rules.decode(found, IDLE)
                assert isinstance(made, Sample), made
                pixels, caption, key = made
                members = found.encoded.members
                told = json.loads(members["json"])
                assert told["key"] == key
                assert (told["caption"], told["split"]) == (caption, split)
                read_so_far.append(Back(pixels, caption, told, members))
        return read_so_far

    return read

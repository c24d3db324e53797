"""What the stream left out reaches the log and the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from reading import READING
from salon.callbacks.drops import REPORT, Drops
from salon.data.module import ShardData
from salon.data.tally import Patience
from tars import encode, good, noise, write_shard


def dirty(folder: Path, bad: int) -> ShardData:
    folder.mkdir(exist_ok=True)
    picture = encode(noise(0, toy.SIDE, toy.SIDE))
    samples = [(key, members | {"png": picture}) for key, members in map(good, range(16))]
    samples += [(f"bad{i}", {"png": b"", "txt": b"x"}) for i in range(bad)]
    write_shard(folder / "00000.tar", samples)
    settings: dict[str, Any] = {
        **READING, "resolution": toy.SIDE, "batch_size": 4, "val_samples": 4, "seed": 0,
        "lanes": 1, "window": 16 + bad, "workers": 0,
        "errors": Patience(
            max_bad_fraction=0.4, min_seen=20, max_consecutive=99,
            max_lost_shards=9, unreachable="skip"),
    }  # fmt: skip
    return ShardData(train=str(folder), val=str(folder), test=None, heldout=None, **settings)


def fit(data: ShardData, folder: Path) -> toy.Rows:
    rows = toy.Rows()
    trainer = toy.trainer(
        [Drops(folder=folder)], batches=12, validate_every=6, loggers=[rows], log_every_n_steps=2
    )
    trainer.fit(toy.Toy(), datamodule=data)
    return rows


def test_what_was_left_out_is_logged_and_written(tmp_path: Path) -> None:
    rows = fit(dirty(tmp_path / "shards", bad=4), tmp_path).having("data/bad/image_empty")
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["used"] == 48, "12 batches of 4, and none that was only fetched"
    assert 8 <= report["bad"] <= 12
    assert [row["data/bad/image_empty"] for row in rows][-1] >= 8
    assert 0 < rows[-1]["data/bad_fraction"] < 0.3


def test_a_clean_stream_says_nothing_in_the_log(tmp_path: Path) -> None:
    rows = fit(dirty(tmp_path / "shards", bad=0), tmp_path).rows
    assert json.loads((tmp_path / REPORT).read_text())["bad"] == 0
    assert not [key for row in rows for key in row if key.startswith("data/")]


def test_a_run_that_ends_for_bad_data_leaves_the_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples are bad.*image_empty"):
        fit(dirty(tmp_path / "shards", bad=30), tmp_path)
    assert json.loads((tmp_path / REPORT).read_text())["bad"] >= 10

"""Settings of conf/reading.yaml that make no sense are refused by name, before anything is read."""

from __future__ import annotations

import pytest
from hydra import compose

from salon.config import build


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("access.attempts=0", "a whole number, at least 1"),
        ("access.attempts=2.5", "a whole number, at least 1"),
        ("access.backoff=-1", "a number, at least 0"),
        ("access.patience=0", "a number, at least 0.001"),
        ("access.patience=null", "a number, at least 0.001"),
        ("access.schemes=[file,htps]", "a list of some of file, http, https"),
        ("access.schemes=file", "a list of some of file, http, https"),
        ("limits.member=0", "a whole number, at least 1"),
        ("limits.json=true", "a whole number, at least 1"),
        ("limits.header=-5", "a whole number, at least 1"),
        ("errors.max_bad_fraction=1.5", "at least 0 and at most 1"),
        ("errors.max_bad_fraction=.nan", "at least 0 and at most 1"),
        ("errors.min_seen=0", "a whole number, at least 1"),
        ("errors.max_consecutive=0", "a whole number, at least 1"),
        ("errors.max_lost_shards=0", "a whole number, at least 1"),
        ("errors.unreachable=ignore", "'skip' or 'stop'"),
        ("image.formats=[JPG,PNG]", "Pillow's names"),
        ("image.formats=[]", "Pillow's names"),
        ("image.formats=PNG", "Pillow's names"),
        ("image.max_pixels=0", "a whole number, at least 1"),
        ("image.min_side=0", "a whole number, at least 1"),
        ("image.max_aspect=0.5", "a number, at least 1"),
        ("image.animated=last", "first or reject"),
        ("crop=centre", "'center' or 'random'"),
        ("buckets.step=10", "that divide data.resolution=64"),
        ("buckets.max_aspect=0.9", "at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    setting: str, expected: str, hydra_conf: None
) -> None:
    more = ["data.buckets.step=16"] if setting.startswith("buckets.max") else []
    cfg = compose("train", ["data=shards", "data.train=x", "data.val=x", f"data.{setting}", *more])
    with pytest.raises(ValueError, match=rf"data\.{setting.partition('=')[0]}=.*{expected}"):
        build(cfg.data, "data")


def test_the_settings_as_they_are_make_sense(hydra_conf: None) -> None:
    data = build(compose("train", ["data=shards", "data.train=x", "data.val=x"]).data, "data")
    assert data.buckets == []
    assert data.reader.access.attempts == 5
    assert data.reader.image.formats == ("JPEG", "PNG", "WEBP")

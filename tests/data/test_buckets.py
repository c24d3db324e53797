"""Batches of one shape each: which shapes, who goes where, and going on in the middle."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reading import IMAGE, PATIENCE, reader
from salon.data.buckets import make_buckets, nearest
from salon.data.lane import Source
from salon.data.stream import TrainStream
from streams import as_worker, cursors, drops, keys
from tars import encode, noise, write_shard

BUCKETS = make_buckets(resolution=16, step=4, max_aspect=2.0)


def stream(shards: list[str], **changes: Any) -> TrainStream:
    told: dict[str, Any] = {
        "batch_size": 4, "seed": 0, "lanes": 2, "window": 40, "buckets": BUCKETS,
    } | changes  # fmt: skip
    patience = told.pop("patience", PATIENCE)
    one = [Source("train", shards, 1.0)]
    return TrainStream(one, reader(16, image=IMAGE), patience, **told)


# -- which shapes there are --------------------------------------------------------------------


def test_the_buckets_are_of_about_the_area_and_lie_both_ways() -> None:
    assert make_buckets(resolution=64, step=16, max_aspect=2.0) == ((48, 80), (64, 64), (80, 48))
    wide = make_buckets(resolution=512, step=64, max_aspect=2.0)
    assert {(height, width) for width, height in wide} == set(wide)
    assert all(width % 64 == height % 64 == 0 for width, height in wide)
    assert all(0.85 * 512**2 < width * height <= 512**2 for width, height in wide)
    assert max(width / height for width, height in wide) <= 2
    assert len(wide) == 5
    ratios = [width / height for width, height in wide]
    assert ratios == sorted(ratios)


def test_without_a_step_there_are_none() -> None:
    assert make_buckets(resolution=64, step=None, max_aspect=2.0) == ()


@pytest.mark.parametrize("step", [0, -8, 48, 8.0, "8", True])
def test_a_step_that_does_not_divide_is_refused(step: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.buckets\.step=.*data\.resolution=64"):
        make_buckets(resolution=64, step=step, max_aspect=2.0)


@pytest.mark.parametrize("aspect", [0.5, float("nan"), -1])
def test_an_aspect_under_one_is_refused(aspect: float) -> None:
    with pytest.raises(ValueError, match=r"data\.buckets\.max_aspect="):
        make_buckets(resolution=64, step=16, max_aspect=aspect)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_picture_and_the_same_on_its_side_go_to_mirrored_buckets(width: int, height: int) -> None:
    wide, high = BUCKETS[nearest(BUCKETS, width, height)]
    if nearest(BUCKETS, width, height) != nearest(BUCKETS, width + 1, height):
        return  # on the very border either will do
    assert BUCKETS[nearest(BUCKETS, height, width)] == (high, wide)
    least = min(abs(np.log(a / b * height / width)) for a, b in BUCKETS)
    assert abs(np.log(wide / high * height / width)) == pytest.approx(least)


# -- the stream --------------------------------------------------------------------------------

SIDES = [(20, 20), (32, 20), (20, 32), (24, 20), (40, 20), (20, 60)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four shards of 30 pictures, most of them square; one is turned by its EXIF."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    made = []
    for shard in range(4):
        samples = []
        for place in range(30):
            width, height = SIDES[int(rng.choice(6, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]))]
            told = json.dumps({"width": width, "height": height}).encode()
            picture = encode(noise(shard * 30 + place, width, height))
            samples.append(
                (f"{shard:02d}{place:03d}", {"png": picture, "txt": b"noise", "json": told})
            )
        made.append(str(write_shard(folder / f"{shard:05d}.tar", samples)))
    return made


@pytest.fixture(scope="module")
def dirty(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Besides them two shards with pictures whose header is right and that are cut off."""
    folder = tmp_path_factory.mktemp("dirty")
    made = []
    for shard in range(2):
        samples = []
        for place in range(20):
            picture = encode(noise(place, 32, 20))
            cut = picture[: len(picture) // 2] if place % 3 == 0 else picture
            samples.append((f"cut{shard}{place:02d}", {"png": cut, "txt": b"noise"}))
        samples.append((f"none{shard}", {"png": b"", "txt": b"noise"}))
        samples.append((f"alone{shard}", {"txt": b"noise"}))
        made.append(str(write_shard(folder / f"{shard:05d}.tar", samples)))
    return [*shards, *made]


def test_every_batch_has_one_shape_which_is_its_pictures_own(shards: list[str]) -> None:
    sizes = {}
    for shard in shards:
        for item in reader().candidates(shard, "train"):
            told = json.loads(item.encoded.members["json"])  # type: ignore[union-attr]
            sizes[item.encoded.key] = (told["width"], told["height"])  # type: ignore[union-attr]
    shapes = Counter()
    for batch in itertools.islice(stream(shards), 60):
        assert len(batch.keys) == len(batch.captions) == 4
        _, _, height, width = batch.images.shape
        shapes[width, height] += 1
        for key in batch.keys:
            assert BUCKETS[nearest(BUCKETS, *sizes[key])] == (width, height)
    assert set(shapes) == set(BUCKETS)
    assert shapes[16, 16] > shapes[20, 12] > 5


def test_what_does_not_fit_is_cut_at_its_long_side_and_not_distorted(tmp_path: Path) -> None:
    """A picture of stripes across: the bucket keeps their width and loses the outer ones."""
    stripes = Image.new("RGB", (60, 20))
    for x in range(60):
        stripes.paste((255, 255, 255) if x // 10 % 2 else (0, 0, 0), (x, 0, x + 1, 20))
    one = str(write_shard(tmp_path / "a.tar", [("a", {"png": encode(stripes), "txt": b"x"})]))
    (size,) = [s for s in BUCKETS if s == (20, 12)]
    batch = next(iter(stream([one], lanes=1, batch_size=1, window=1)))
    assert batch.images.shape[2:] == size[::-1]
    row = batch.images[0, 0, 6]  # 60 x 20 becomes 36 x 12 and its middle 20 columns remain
    assert [bool(row[x] > 0) for x in (1, 7, 12, 18)] == [True, False, True, False]


def test_a_pass_brings_each_sample_once_or_says_why_not(shards: list[str]) -> None:
    """One lane whose windows are whole passes: 120 samples each."""
    batches = list(itertools.islice(stream(shards, lanes=1, window=120), 90))
    for number in range(2):
        mine = [b for b in batches if b.trace.cursor.sources[0].window == number]
        seen = Counter(key for batch in mine for key in batch.keys)
        # What the first window left waiting comes with the second's.
        assert set(seen.values()) <= ({1} if number == 0 else {1, 2})
        assert sum(seen.values()) > 100
    used = sum(len(batch.keys) for batch in batches)
    windows = batches[-1].trace.cursor.sources[0].window
    left = drops(batches).get("filter:bucket", 0)
    assert used + left >= 120 * windows
    assert used > 0.9 * 120 * windows


def test_what_stays_too_few_is_counted_as_filtered(tmp_path: Path) -> None:
    """Nineteen squares and one tall picture a window: its batch of four is never full."""
    samples = [
        (f"{i:03d}", {"png": encode(noise(i, 16, 48 if i == 0 else 16)), "txt": b"x"})
        for i in range(20)
    ]
    one = str(write_shard(tmp_path / "a.tar", samples))
    batches = list(itertools.islice(stream([one], lanes=1, window=20), 40))
    assert not {key for b in batches for key in b.keys if int(key) == 0}
    windows = batches[-1].trace.cursor.sources[0].window
    assert windows - 2 <= drops(batches)["filter:bucket"] <= windows
    assert batches[-1].trace.tally.bad == 0


def test_a_window_too_small_for_its_buckets_is_refused(shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"3 buckets of batches of 60.*data\.window"):
        next(iter(stream(shards, batch_size=60, window=8)))


def test_bad_pictures_leave_no_batch_short(dirty: list[str]) -> None:
    batches = list(itertools.islice(stream(dirty), 120))
    assert all(len(batch.keys) == 4 for batch in batches)
    counted = drops(batches)
    assert counted["image_corrupt"] > 20
    assert counted["image_empty"] > 2
    assert counted["missing_image"] > 2
    bad = {f"cut{s}{p:02d}" for s in range(2) for p in range(0, 20, 3)}
    assert not bad & {key for batch in batches for key in batch.keys}


def test_too_many_bad_ones_in_a_row_end_the_run(tmp_path: Path) -> None:
    cut = encode(noise(0, 32, 20))[:700]
    samples = [(f"{i:03d}", {"png": cut, "txt": b"x"}) for i in range(60)]
    one = str(write_shard(tmp_path / "a.tar", samples))
    with pytest.raises(ValueError, match=r"bad samples in a row.*image_corrupt"):
        next(iter(stream([one], lanes=1, patience=PATIENCE._replace(max_consecutive=10))))


def test_too_many_refused_by_their_headers_in_a_row_end_the_run(tmp_path: Path) -> None:
    samples = [(f"{i:03d}", {"png": b"<html>", "txt": b"x"}) for i in range(60)]
    one = str(write_shard(tmp_path / "a.tar", samples))
    with pytest.raises(ValueError, match=r"10 bad samples in a row.*image_unrecognised"):
        next(iter(stream([one], lanes=1, patience=PATIENCE._replace(max_consecutive=10))))


def test_what_is_bad_is_bad_even_where_its_bucket_is_never_full(tmp_path: Path) -> None:
    tall = encode(noise(0, 16, 48))
    samples = [("cut", {"png": tall[: len(tall) // 2], "txt": b"x"})]
    samples += [(f"{i:03d}", {"png": encode(noise(i, 16, 16)), "txt": b"x"}) for i in range(19)]
    one = str(write_shard(tmp_path / "a.tar", samples))
    counted = drops(list(itertools.islice(stream([one], lanes=1, window=20), 40)))
    assert set(counted) == {"image_corrupt"}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_division_at_any_time_is_the_same_sequence(
    dirty: list[str], data: st.DataObject
) -> None:
    told = {
        "batch_size": data.draw(st.integers(1, 5), "batch"),
        "window": data.draw(st.integers(15, 60), "window"),
    }
    whole = list(itertools.islice(stream(dirty, **told), 60))
    seen: list[Any] = []
    for _ in range(3):
        ranks, workers = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]), "ranks x workers")
        each = data.draw(st.integers(1, 20 // (ranks * workers)), "batches of each worker")
        at = {"start": len(seen), "cursors": cursors(seen)}
        parts = [
            as_worker(stream(dirty, **told, **at, rank=i % ranks, ranks=ranks), i // ranks, workers)
            for i in range(ranks * workers)
        ]
        seen += [next(part) for _ in range(each) for part in parts]
    assert [batch.keys for batch in seen] == keys(whole, len(seen))
    assert [batch.trace.cursor for batch in seen] == [b.trace.cursor for b in whole[: len(seen)]]
    reports = [[batch.trace.tally.report() for batch in part] for part in (seen, whole)]
    assert reports[0] == reports[1][: len(seen)], "nothing is told twice, or not at all"

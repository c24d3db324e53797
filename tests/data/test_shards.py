"""The stream: its order, how ranks and workers divide it, and what dirty shards do to it."""

from __future__ import annotations

import itertools
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from salon.data.shards import (
    PATIENCE,
    BadSample,
    FixedSplit,
    Reader,
    TrainStream,
    count,
    decode,
    encoded,
    expand,
)
from salon.types import Batch
from tars import encode, good, noise, write_shard

READER = Reader(resolution=8, max_pixels=10_000)
Shard = Callable[..., str]


def stream(shards: Sequence[str], **changes: Any) -> TrainStream:
    settings: dict[str, Any] = {
        "batch_size": 4, "seed": 0, "lanes": 4, "window": 5, "rank": 0, "ranks": 1, "start": 0,
    }  # fmt: skip
    return TrainStream(shards, READER, **settings | changes)


def keys(batches: Any, number: int) -> list[list[str]]:
    return [batch.keys for batch in itertools.islice(batches, number)]


def loaded(dataset: TrainStream, number: int, workers: int, context: str) -> list[list[str]]:
    loader: DataLoader[Batch] = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    return keys(loader, number)


@pytest.fixture(scope="module")
def shards(six_shards: Path) -> list[str]:
    return expand("data.train", str(six_shards))


# -- what a batch is ---------------------------------------------------------------------------


def test_a_batch_is_float_images_in_minus_one_to_one_decoded_exactly(shards: list[str]) -> None:
    batch = next(iter(stream(shards)))
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1
    for image, caption, key in zip(*batch, strict=True):
        pixels = np.asarray(noise(int(key)), np.float32)
        expected = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)
        assert caption == f"noise {int(key)}"


def test_both_ends_of_the_range_are_reached(shard: Shard) -> None:
    halves = Image.new("RGB", (8, 8))
    halves.paste((255, 255, 255), (0, 0, 4, 8))
    one = shard(("a", {"png": encode(halves), "txt": b"halves"}))
    image = next(iter(stream([one], batch_size=1, lanes=1))).images[0]
    assert image.unique().tolist() == [-1.0, 1.0]
    assert (image[:, :, :4] == 1).all()


# -- the order ---------------------------------------------------------------------------------


def test_the_seed_is_the_order(shards: list[str]) -> None:
    first = keys(stream(shards), 20)
    assert keys(stream(shards), 20) == first
    assert keys(stream(shards, seed=1), 20) != first


def test_the_window_has_an_order_of_its_own_for_each_seed_and_pass(shards: list[str]) -> None:
    """A single shard: nothing but the window can change the order."""
    settings = {"lanes": 1, "window": 8, "batch_size": 8}
    first = keys(stream(shards[:1], **settings), 2)
    assert first[0] != first[1]
    assert keys(stream(shards[:1], seed=1, **settings), 1)[0] not in first
    assert sorted(first[0]) == sorted(first[1]) == [f"{i:05d}" for i in range(8)]


@pytest.mark.parametrize(("lanes", "window"), [(1, 48), (2, 8), (3, 16), (6, 4)])
def test_a_pass_gives_every_sample_once_and_each_pass_another_order(
    shards: list[str], lanes: int, window: int
) -> None:
    batches = keys(stream(shards, lanes=lanes, window=window), 36)
    passes = [list(itertools.chain(*batches[i : i + 12])) for i in (0, 12, 24)]
    for one in passes:
        assert sorted(one) == [f"{i:05d}" for i in range(48)]
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_windows_that_straddle_passes_lose_nothing(shards: list[str]) -> None:
    batches = keys(stream(shards, lanes=1, window=7, batch_size=5), 84)  # 420 samples, 8.75 passes
    times = [sum(batch.count(f"{i:05d}") for batch in batches) for i in range(48)]
    assert sum(times) == 420
    assert min(times) >= 8
    assert max(times) <= 10


def test_shards_are_mixed_by_the_window_and_by_the_lanes(shards: list[str]) -> None:
    shard_of = [{int(key) // 8 for key in batch} for batch in keys(stream(shards, window=24), 12)]
    assert max(map(len, shard_of)) > 1
    plain = keys(stream(shards, lanes=1, window=1), 12)
    assert all(len({int(key) // 8 for key in batch}) == 1 for batch in plain)
    first_of_each_lane = [batch[0] for batch in keys(stream(shards, window=1), 4)]
    assert len({int(key) // 8 for key in first_of_each_lane}) == 4


def test_ranks_share_the_single_sequence(shards: list[str]) -> None:
    whole = keys(stream(shards), 24)
    for ranks in (2, 4):
        parts = [keys(stream(shards, rank=r, ranks=ranks), 24 // ranks) for r in range(ranks)]
        assert [part[i] for i in range(24 // ranks) for part in parts] == whole
        assert all(len(batch) == 4 for part in parts for batch in part)
    # Within a pass that nothing straddles the ranks have no sample in common.
    halves = [keys(stream(shards, rank=r, ranks=2, lanes=2, window=8), 6) for r in range(2)]
    first, second = ({key for batch in half for key in batch} for half in halves)
    assert len(first) == len(second) == 24
    assert not first & second


@pytest.mark.parametrize("start", [0, 3])
def test_forked_workers_share_it_too(shards: list[str], start: int) -> None:
    whole = keys(stream(shards), 2 * start + 16)[2 * start :]
    for rank in range(2):
        dataset = stream(shards, rank=rank, ranks=2, start=2 * start)
        assert loaded(dataset, 8, 2, "fork") == whole[rank::2]


def test_spawned_workers_share_it_too(shards: list[str]) -> None:
    """They inherit no process group: the rank has to reach them with the data set."""
    dataset = stream(shards, rank=1, ranks=2)
    assert loaded(dataset, 8, 2, "spawn") == keys(stream(shards), 16)[1::2]


@pytest.mark.parametrize("start", [1, 2, 5, 12, 31])
def test_a_start_goes_on_where_the_uninterrupted_stream_is(shards: list[str], start: int) -> None:
    whole = keys(stream(shards), start + 12)
    assert keys(stream(shards, start=start), 12) == whole[start:]
    if start % 2 == 0:
        parts = [keys(stream(shards, start=start, rank=r, ranks=2), 6) for r in range(2)]
        assert [part[i] for i in range(6) for part in parts] == whole[start:]


# -- fixed splits ------------------------------------------------------------------------------


def test_a_fixed_split_is_the_first_batches_in_order_on_every_rank(shards: list[str]) -> None:
    split = FixedSplit(shards, READER, batch_size=4, batches=6)
    expected = [[f"{i:05d}" for i in range(4 * b, 4 * b + 4)] for b in range(6)]
    assert keys(split, 99) == keys(split, 99) == expected
    parts = [FixedSplit(shards, READER, batch_size=4, batches=6, rank=r, ranks=2) for r in range(2)]
    assert [keys(part, 99) for part in parts] == [expected[0::2], expected[1::2]]
    assert [len(part) for part in parts] == [3, 3]


def test_a_fixed_split_that_runs_dry_says_so(
    shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(list(FixedSplit(shards, READER, batch_size=4, batches=13))) == 12
    assert "12 whole batches are read, not 13" in caplog.text
    with pytest.raises(ValueError, match="48 good samples, not one batch of 49"):
        list(FixedSplit(shards, READER, batch_size=49, batches=1))


# -- which shards ------------------------------------------------------------------------------


def test_folders_globs_and_brace_lists_name_the_same_shards(six_shards: Path) -> None:
    folder = [str(six_shards / f"{i:05d}.tar") for i in range(6)]
    assert expand("data.train", str(six_shards)) == folder
    assert expand("data.train", f"{six_shards}/*.tar") == folder
    assert expand("data.train", f"{six_shards}/{{00000..00005}}.tar") == folder
    assert expand("data.train", f"{six_shards}/0000[13].tar") == [folder[1], folder[3]]
    assert expand("data.train", [folder[4], folder[2]]) == [folder[4], folder[2]]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("{}/nowhere", "no shard there"),
        ("{}/*.zip", "no shard there"),
        ("{}/{{00000..00006}}.tar", r"00006\.tar' matches no"),
        ("pipe:touch {}/ran", "not opened"),
        ("https://example.com/00000.tar", "not opened"),
        ("s3://bucket/00000.tar", "not opened"),
    ],
)
def test_what_names_no_local_shard_is_refused_by_key(
    pattern: str, why: str, six_shards: Path
) -> None:
    with pytest.raises(ValueError, match=r"data\.val=.*" + why):
        expand("data.val", pattern.format(six_shards))
    assert not (six_shards / "ran").exists()


def test_a_file_whose_name_is_a_command_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:touch ran;.tar", [good(1)])
    (shard,) = expand("data.train", "*.tar")
    assert [sample["__key__"] for sample in encoded(shard)] == ["00001"]
    assert not (tmp_path / "ran").exists()


def test_count_trusts_the_stats_and_reads_without_them(shard: Shard, tmp_path: Path) -> None:
    assert count(shard(good(0), good(1), good(2))) == 3
    (tmp_path / "00001_stats.json").write_text('{"successes": 2}')
    assert count(shard(good(0), good(1), good(2), name="00001.tar")) == 2


# -- dirty samples -----------------------------------------------------------------------------


def header_only(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


PNG = encode(noise(1))
BAD = {
    "zero bytes": ({"png": b"", "txt": b"x"}, "cannot identify"),
    "a page of HTML": ({"jpg": b"<html><body>404</body></html>", "txt": b"x"}, "cannot identify"),
    "cut in two": ({"png": PNG[: len(PNG) // 2], "txt": b"x"}, "truncated|broken"),
    "EPS": ({"jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "txt": b"x"}, "identify"),
    "no caption": ({"png": PNG, "json": b"{}"}, r"no \.txt, only \.png, \.json"),
    "no picture": ({"txt": b"x"}, r"no png, .*only \.txt"),
    "empty caption": ({"png": PNG, "txt": b""}, "caption is empty"),
    "blank caption": ({"png": PNG, "txt": b" \n\t"}, "caption is empty"),
    "not UTF-8": ({"png": PNG, "txt": b"\xff\xfe caf\xe9"}, "not UTF-8"),
    "too large": ({"png": header_only(9000, 9000), "txt": b"x"}, "9000x9000.*max_pixels"),
    "a bomb": ({"png": header_only(60000, 60000), "txt": b"x"}, "decompression bomb"),
    "dots in its name": ({"b.png": PNG, "b.txt": b"x"}, r"no \.txt, only \.b\.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_sample_is_skipped_with_a_warning_and_training_goes_on(
    name: str, shard: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    members, why = BAD[name]
    one = shard(good(0), ("bad", members), good(1))
    batches = keys(stream([one], batch_size=2, lanes=1, window=3), 4)
    assert [sorted(batch) for batch in batches] == [["00000", "00001"]] * 4
    assert caplog.messages
    for message in caplog.messages:
        assert message.startswith(f"skipped a bad sample, {one}:bad: ")
    with pytest.raises(BadSample, match=why):
        decode(list(encoded(one))[1], resolution=8, max_pixels=10_000)


def test_a_size_is_refused_before_anything_is_decoded(shard: Shard) -> None:
    """The limit itself is allowed."""
    one = next(encoded(shard(("a", {"png": encode(noise(0, 100, 100)), "txt": b"x"}))))
    assert decode(one, resolution=8, max_pixels=10_000).image.shape == (8, 8, 3)
    with pytest.raises(BadSample, match="100x100 is over"):
        decode(one, resolution=8, max_pixels=9_999)


def test_data_in_which_nothing_is_good_ends_with_the_reason(shard: Shard) -> None:
    bad = [(f"{i:05d}", {"png": b"", "txt": b"x"}) for i in range(20)]
    endless = iter(stream([shard(*bad)], lanes=1))
    with pytest.raises(ValueError, match=rf"{PATIENCE:,} bad samples in a row.*cannot identify"):
        next(endless)


def test_fewer_bad_samples_in_a_row_are_lived_through(shard: Shard) -> None:
    bad = [(f"{i:05d}", {"txt": b"x"}) for i in range(PATIENCE - 1)]
    batches = stream([shard(*bad, good(10**4))], lanes=1, window=1, batch_size=3)
    assert keys(batches, 2) == [["10000"] * 3] * 2


def test_an_empty_shard_among_others_is_no_harm(shard: Shard) -> None:
    two = [shard(name="a.tar"), shard(good(0), good(1), name="b.tar")]
    assert len(keys(stream(two, lanes=2, batch_size=2), 20)) == 20


def test_shards_without_a_sample_end_with_a_clear_error(shard: Shard) -> None:
    with pytest.raises(ValueError, match=r"data\.train: no sample in any of 2 shards"):
        next(iter(stream([shard(name="a.tar"), shard(name="b.tar")], lanes=2)))


def test_a_cut_shard_keeps_what_stands_before_the_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut at every 256 bytes: between two members no error comes from tarfile."""
    numbers = range(4)
    whole = write_shard(tmp_path / "whole.tar", [good(i) for i in numbers]).read_bytes()
    ends, place = [], 0  # of the samples
    for number in numbers:
        for content in good(number)[1].values():
            place += 512 + -(-len(content) // 512) * 512
        ends.append(place)
    cut = tmp_path / "cut.tar"
    for length in range(0, place + 1, 256):
        cut.write_bytes(whole[:length])
        caplog.clear()
        samples = list(encoded(str(cut)))
        full = [f"{i:05d}" for i in numbers if ends[i] <= length]
        usable = [sample.key for sample in READER.good(samples)]
        # A sample of which only the json is cut away can be used all the same.
        assert usable in (full, [f"{i:05d}" for i in range(len(full) + 1)]), length
        assert any(f"{cut} breaks off" in message for message in caplog.messages), length
    cut.write_bytes(whole)
    caplog.clear()
    assert len(list(encoded(str(cut)))) == 4
    assert not caplog.messages


def test_a_member_that_comes_twice_costs_only_itself(
    shard: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    first = good(0)
    one = shard(first, (first[0], {"txt": b"again"}), good(1))
    samples = list(encoded(one))
    assert [sample["__key__"] for sample in samples] == ["00000", "00001"]
    assert samples[0]["txt"] == b"noise 0"
    assert "duplicate" in caplog.text


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_shard_is_not_even_read(shard: Shard, tmp_path: Path) -> None:
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    key, members = good(0)
    names = ("pkl", "pickle", "pyd", "pth", "cls", "npy")
    one = shard((key, members | dict.fromkeys(names, payload)))
    assert keys(stream([one], lanes=1, batch_size=1), 1) == [["00000"]]
    assert not set(names) & set(next(encoded(one)))
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)
    assert (tmp_path / "ran").exists(), "the payload works, so its silence says something"

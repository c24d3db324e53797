"""The stream: its order, how ranks and workers divide it, where it goes on, and dirty shards."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from reading import ACCESS, PATIENCE, reader
from salon.data import captions, image, metadata
from salon.data.lane import Source
from salon.data.openers import expand
from salon.data.stream import FixedSplit, TrainStream
from salon.types import Batch
from streams import as_worker, cursors, drops, keys
from tars import encode, good, noise, write_shard

Shard = Callable[..., str]


def sources(shards: Any) -> list[Source]:
    """A list of shards, or of each source's shards and weight."""
    if isinstance(shards, dict):
        return [Source(name, *told) for name, told in shards.items()]
    return [Source("train", shards, 1.0)]


def stream(shards: Any, **changes: Any) -> TrainStream:
    told: dict[str, Any] = {"batch_size": 4, "seed": 0, "lanes": 4, "window": 5} | changes
    rules, patience = told.pop("rules", {}), told.pop("patience", PATIENCE)
    return TrainStream(sources(shards), reader(**rules), patience, **told)


def fixed(shards: Sequence[str], **told: Any) -> FixedSplit:
    return FixedSplit(sources(shards), reader(**told.pop("rules", {})), PATIENCE, **told)


def loaded(dataset: TrainStream, number: int, workers: int, context: str) -> list[list[str]]:
    loader: DataLoader[Batch] = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    return keys(loader, number)


@pytest.fixture(scope="module")
def shards(six_shards: Path) -> list[str]:
    return expand("data.train", str(six_shards), ACCESS)


# -- what a batch is ---------------------------------------------------------------------------


def test_a_batch_is_float_images_in_minus_one_to_one_decoded_exactly(shards: list[str]) -> None:
    batch = next(iter(stream(shards)))
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1
    for found, caption, key in zip(*batch[:3], strict=True):
        pixels = np.asarray(noise(int(key)), np.float32)
        expected = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
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


@pytest.mark.parametrize("done", [0, 3])
def test_forked_workers_share_it_too(shards: list[str], done: int) -> None:
    whole = list(itertools.islice(stream(shards), 2 * done + 16))
    for rank in range(2):
        dataset = stream(
            shards, rank=rank, ranks=2, start=2 * done, cursors=cursors(whole[: 2 * done])
        )
        assert loaded(dataset, 8, 2, "fork") == keys(whole[2 * done :], 16)[rank::2]


def test_spawned_workers_share_it_too(shards: list[str]) -> None:
    """They inherit no process group: the rank has to reach them with the data set."""
    dataset = stream(shards, rank=1, ranks=2)
    assert loaded(dataset, 8, 2, "spawn") == keys(stream(shards), 16)[1::2]


# -- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2, 5, 12, 31])
@pytest.mark.parametrize("window", [1, 5, 8, 100])
def test_a_run_goes_on_where_the_uninterrupted_one_is(
    shards: list[str], done: int, window: int
) -> None:
    whole = list(itertools.islice(stream(shards, window=window), done + 12))
    goes_on = {"window": window, "start": done, "cursors": cursors(whole[:done])}
    assert keys(stream(shards, **goes_on), 12) == keys(whole[done:], 12)
    if done % 2 == 0:
        parts = [keys(stream(shards, **goes_on, rank=r, ranks=2), 6) for r in range(2)]
        assert [part[i] for i in range(6) for part in parts] == keys(whole[done:], 12)


@pytest.fixture(scope="module")
def dirty(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Seven shards, one of which holds two bad samples, and one that breaks off."""
    folder = tmp_path_factory.mktemp("dirty")
    bad = [("empty", {"png": b"", "txt": b"x"}), good(90), ("alone", {"txt": b"x"}), good(91)]
    cut = write_shard(folder / "cut.tar", [good(i) for i in range(92, 96)])
    cut.write_bytes(cut.read_bytes()[:4096])
    return [*shards, str(write_shard(folder / "bad.tar", bad)), str(cut)]


LATE = metadata.make_rules([{"name": "late", "field": "number", "min": 3, "missing": "keep"}])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_division_at_any_time_is_the_same_sequence(
    dirty: list[str], data: st.DataObject
) -> None:
    """Legs of a run, each with ranks x workers of its own, over bad and filtered samples."""
    lanes = data.draw(st.sampled_from([2, 4, 6]), "lanes")
    told = {
        "lanes": lanes, "rules": {"filters": LATE},
        "batch_size": data.draw(st.integers(1, 5), "batch"),
        "window": data.draw(st.integers(1, 20), "window"),
    }  # fmt: skip
    whole = list(itertools.islice(stream(dirty, **told), 60))
    divisions = [(r, w) for r in (1, 2, 3) for w in (1, 2, 3) if lanes % (r * w) == 0]
    seen: list[Batch] = []
    for _ in range(3):
        ranks, workers = data.draw(st.sampled_from(divisions), "ranks x workers")
        each = data.draw(st.integers(1, 18 // (ranks * workers)), "batches of each worker")
        at = {"start": len(seen), "cursors": cursors(seen)}
        parts = [
            as_worker(stream(dirty, **told, **at, rank=i % ranks, ranks=ranks), i // ranks, workers)
            for i in range(ranks * workers)
        ]
        seen += [next(part) for _ in range(each) for part in parts]
    assert [batch.trace.unit for batch in seen] == list(range(len(seen)))
    assert [batch.keys for batch in seen] == keys(whole, len(seen))
    assert [batch.trace.cursor for batch in seen] == [b.trace.cursor for b in whole[: len(seen)]]
    reports = [[batch.trace.tally.report() for batch in part] for part in (seen, whole)]
    assert reports[0] == reports[1][: len(seen)], "nothing is told twice, or not at all"


def test_going_on_reads_a_window_again_and_decodes_nothing_of_it(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(itertools.islice(stream(shards, lanes=1, window=10, batch_size=1), 47))
    resumed = stream(
        shards, lanes=1, window=10, batch_size=1, start=46, cursors=cursors(whole[:46])
    )
    decoded: list[str] = []
    real = image.decode
    monkeypatch.setattr(image, "decode", lambda *a, **k: decoded.append("") or real(*a, **k))
    assert next(iter(resumed)).keys == whole[46].keys
    assert len(decoded) == 1


# -- what a sample draws -----------------------------------------------------------------------


def test_what_is_drawn_for_a_sample_depends_on_where_it_stands_alone(shard: Shard) -> None:
    told = b'{"captions": ["one", "two", "three", "four"]}'
    picture = encode(noise(0, 40, 8))
    one = shard(*[(f"{i:02d}", {"png": picture, "json": told}) for i in range(12)])
    caption = captions.make_rules(
        keys=["json:captions"], weights=None, min_chars=1, max_chars=99, normalize=True
    )
    settings = {
        "lanes": 1, "window": 6, "batch_size": 3, "rules": {"caption": caption, "crop": "random"},
    }  # fmt: skip
    whole = list(itertools.islice(stream([one], **settings), 12))
    again = list(
        itertools.islice(stream([one], **settings, start=5, cursors=cursors(whole[:5])), 7)
    )
    for before, after in zip(whole[5:], again, strict=True):
        assert before.captions == after.captions
        assert torch.equal(before.images, after.images)
    assert {word for batch in whole for word in batch.captions} == {"one", "two", "three", "four"}
    assert len({batch.images[i].sum().item() for batch in whole for i in range(3)}) > 6
    assert whole[0].captions != next(iter(stream([one], **settings, seed=1))).captions


# -- several sources ---------------------------------------------------------------------------


def test_sources_are_mixed_by_their_weights_and_go_on_exactly(
    shards: list[str], shard: Shard
) -> None:
    few = shard(*[(f"few{i}", good(i)[1]) for i in range(3)], name="few.tar")
    mixed = {"many": (shards, 3.0), "few": ([few], 1.0)}
    whole = list(itertools.islice(stream(mixed), 200))
    used = [batch.trace.tally.used for batch in whole]
    share = sum(each.get("few", 0) for each in used) / sum(sum(each.values()) for each in used)
    assert 0.2 < share < 0.3
    assert all(sum(each.values()) == 4 for each in used)
    of_few = [sum(key.startswith("few") for key in batch.keys) for batch in whole]
    assert of_few == [each.get("few", 0) for each in used]
    goes_on = stream(mixed, start=70, cursors=cursors(whole[:70]))
    assert keys(goes_on, 130) == keys(whole[70:], 130)
    parts = [
        keys(stream(mixed, start=70, cursors=cursors(whole[:70]), rank=r, ranks=2), 65)
        for r in range(2)
    ]
    assert [part[i] for i in range(65) for part in parts] == keys(whole[70:], 130)


def test_a_single_shard_feeds_every_lane_in_turn(shard: Shard) -> None:
    one = shard(*[good(i) for i in range(8)])
    batches = keys(stream({"a": ([one], 1.0)}, lanes=4, window=8, batch_size=8), 8)
    assert all(sorted(batch) == [f"{i:05d}" for i in range(8)] for batch in batches)


# -- fixed splits ------------------------------------------------------------------------------


def test_a_fixed_split_is_the_first_batches_in_order_on_every_rank(shards: list[str]) -> None:
    split = fixed(shards, batch_size=4, batches=6)
    expected = [[f"{i:05d}" for i in range(4 * b, 4 * b + 4)] for b in range(6)]
    assert keys(split, 99) == keys(split, 99) == expected
    parts = [fixed(shards, batch_size=4, batches=6, rank=r, ranks=2) for r in range(2)]
    assert [keys(part, 99) for part in parts] == [expected[0::2], expected[1::2]]
    assert [len(part) for part in parts] == [3, 3]


def test_a_fixed_split_that_runs_dry_says_so(
    shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(list(fixed(shards, batch_size=4, batches=13))) == 12
    assert "12 whole batches are read, not 13" in caplog.text
    with pytest.raises(ValueError, match="48 good samples, not one batch of 49"):
        list(fixed(shards, batch_size=49, batches=1))


# -- dirty samples -----------------------------------------------------------------------------


BAD = {
    "image_empty": {"png": b"", "txt": b"x"},
    "image_unrecognised": {"jpg": b"<html><body>404</body></html>", "txt": b"x"},
    "image_too_large": {"png": encode(noise(0, 101, 100)), "txt": b"x"},
    "missing_image": {"txt": b"x"},
    "missing_caption": {"png": encode(noise(0)), "json": b"{}"},
    "caption_empty": {"png": encode(noise(0)), "txt": b" \n\t"},
    "caption_not_utf8": {"png": encode(noise(0)), "txt": b"\xff\xfe caf\xe9"},
}


@pytest.mark.parametrize("reason", list(BAD))
def test_a_bad_sample_is_told_with_its_reason_and_training_goes_on(
    reason: str, shard: Shard
) -> None:
    one = shard(good(0), ("bad", BAD[reason]), good(1))
    window = 2 if reason == "missing_image" else 3  # that is seen before windows are filled
    batches = list(itertools.islice(stream([one], batch_size=2, lanes=1, window=window), 4))
    assert [sorted(batch.keys) for batch in batches] == [["00000", "00001"]] * 4
    assert set(drops(batches)) == {reason}
    for batch in batches:
        for shown in batch.trace.tally.examples.get(("train", reason), []):
            assert re.fullmatch(rf"{re.escape(one)}:bad: .+", shown)


def test_what_a_filter_leaves_out_is_told_apart(shard: Shard) -> None:
    samples = [
        (f"{i}", {"png": b"not even looked at" if i < 3 else encode(noise(i)), "txt": b"x",
                  "json": f'{{"score": {i}}}'.encode()})
        for i in range(6)
    ]  # fmt: skip
    rules = metadata.make_rules([{"name": "score", "field": "score", "min": 3}])
    made = stream(
        [shard(*samples)], lanes=1, window=3, batch_size=3, rules={"filters": tuple(rules)}
    )
    first = next(iter(made))
    assert sorted(first.keys) == ["3", "4", "5"]
    assert drops([first]) == {"filter:score": 3}


def test_filters_that_leave_nothing_end_with_the_reason(shard: Shard) -> None:
    rules = metadata.make_rules([{"name": "nice", "field": "score", "min": 3}])
    with pytest.raises(ValueError, match=r"no sample to train on.*filter:nice_missing 2 times"):
        next(iter(stream([shard(good(0), good(1))], lanes=1, rules={"filters": tuple(rules)})))


def test_data_in_which_nothing_is_good_ends_with_the_reason(shard: Shard) -> None:
    bad = [(f"{i:05d}", {"png": b"", "txt": b"x"}) for i in range(20)]
    endless = iter(stream([shard(*bad)], lanes=1))
    with pytest.raises(ValueError, match=r"50 bad samples in a row.*image_empty"):
        next(endless)
    with pytest.raises(ValueError, match=r"50 bad samples in a row.*image_empty"):
        list(fixed([shard(*bad)] * 3, batch_size=1, batches=1))


def test_fewer_bad_samples_in_a_row_are_lived_through(shard: Shard) -> None:
    bad = [(f"{i:05d}", {"png": b"", "txt": b"x"}) for i in range(49)]
    batches = stream([shard(*bad, good(10**4))], lanes=1, window=50, batch_size=1)
    assert keys(batches, 2) == [["10000"]] * 2


def test_an_empty_shard_among_others_is_no_harm(shard: Shard) -> None:
    two = [shard(name="a.tar"), shard(good(0), good(1), name="b.tar")]
    assert len(keys(stream(two, lanes=2, batch_size=2), 20)) == 20


def test_a_shard_that_is_gone_is_told_and_training_goes_on(shard: Shard, tmp_path: Path) -> None:
    two = [shard(good(0), good(1), name="b.tar"), str(tmp_path / "gone.tar")]
    batches = list(itertools.islice(stream(two, lanes=2, batch_size=2, window=2), 6))
    assert all(sorted(batch.keys) == ["00000", "00001"] for batch in batches)
    assert set(drops(batches)) == {"shard_missing"}


def test_shards_without_a_sample_end_with_a_clear_error(shard: Shard) -> None:
    with pytest.raises(ValueError, match=r"source 'train': no sample to train on in any of 2 sha"):
        next(iter(stream([shard(name="a.tar"), shard(name="b.tar")], lanes=2)))


def test_a_cut_shard_keeps_what_stands_before_the_cut(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar", [good(i) for i in range(4)]).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 4])
    batch = next(iter(stream([str(cut)], lanes=1, window=2, batch_size=2)))
    assert set(batch.keys) <= {"00000", "00001"}
    later = list(itertools.islice(stream([str(cut)], lanes=1, window=2, batch_size=2), 3))
    assert "shard_truncated" in drops(later)


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
    (candidate,) = reader().candidates(one, "train")
    assert set(candidate.encoded.members) == {"png", "txt", "json"}
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)
    assert (tmp_path / "ran").exists(), "the payload works, so its silence says something"


# -- shards that give nothing ------------------------------------------------------------------


def test_shards_that_break_before_they_give_anything_end_the_run(
    shards: list[str], tmp_path: Path
) -> None:
    """A network that is down must not be tried shard by shard for hours."""
    gone = [str(tmp_path / f"{i}.tar") for i in range(8)]
    patience = PATIENCE._replace(max_lost_shards=4)
    with pytest.raises(ValueError, match=r"4 shards in a row.*shard_missing.*max_lost_shards"):
        next(iter(stream(gone, lanes=1, patience=patience)))
    mixed = [one for pair in zip(gone, shards * 2, strict=False) for one in pair]
    batches = list(itertools.islice(stream(mixed, lanes=1, patience=patience, window=1), 40))
    assert drops(batches)["shard_missing"] > 4


def test_a_run_can_stop_where_a_shard_cannot_be_fetched_and_go_on_exactly(
    shards: list[str], tmp_path: Path
) -> None:
    whole = keys(stream(shards, lanes=1), 24)
    late = Path(shards[int(whole[6][0]) // 8])  # a shard that is opened after some batches
    away = tmp_path / "away.tar"
    late.rename(away)
    seen: list[Batch] = []
    try:
        stops = stream(shards, lanes=1, patience=PATIENCE._replace(unreachable="stop"))
        with pytest.raises(ValueError, match=r"cannot be fetched: shard_missing.*resume="):
            seen.extend(iter(stops))  # what came before the error stays
    finally:
        away.rename(late)
    assert 0 < len(seen) < 24
    rest = stream(shards, lanes=1, start=len(seen), cursors=cursors(seen))
    assert [b.keys for b in seen] + keys(rest, 24 - len(seen)) == whole


def test_a_broken_shard_counts_as_what_it_lost(shard: Shard) -> None:
    one = Path(shard(*[good(i) for i in range(10)]))
    content = one.read_bytes()
    whole = list(reader().candidates(str(one), "train"))
    one.write_bytes(content[: len(content) // 2])
    *_, last = reader().candidates(str(one), "train")
    assert (last.reason, last.samples) == ("shard_truncated", 1)
    kept = len(list(reader().candidates(str(one), "train"))) - 1
    stats = one.with_name(f"{one.stem}_stats.json")
    stats.write_text('{"successes": 10}')
    *_, last = reader().candidates(str(one), "train")
    assert last.samples == len(whole) - kept > 1
    for nonsense in ("[]", '{"successes": "10"}', '{"successes": -3}', "{", "[" * 100_000):
        stats.write_text(nonsense)
        assert [*reader().candidates(str(one), "train")][-1].samples == 1


def test_bad_candidates_in_a_row_end_the_run_too(shard: Shard) -> None:
    """Samples without a picture, which are never decoded."""
    one = shard(*[(f"{i:03d}", {"txt": b"x"}) for i in range(30)])
    with pytest.raises(ValueError, match=r"20 bad samples in a row.*missing_image"):
        next(iter(stream([one], lanes=1, patience=PATIENCE._replace(max_consecutive=20))))

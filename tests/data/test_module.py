"""The data module: loaders for the Trainer, resuming, prompts and captions for everybody else."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reading import READING
from salon.data.module import ShapesData, ShardData
from salon.data.position import to_plain
from salon.data.tally import Patience
from tars import encode, folder_of, good, noise, write_shard

STREAM = {
    "batch_size": 4, "val_samples": 20, "seed": 0, "lanes": 4, "window": 5, "workers": 0,
    **READING,
}  # fmt: skip


def data(train: Any, *, rank: int = 0, ranks: int = 1, **changes: Any) -> ShardData:
    """The module as a Trainer would hold it."""
    settings = {"val": train, "test": None, "heldout": None, "resolution": 8, **STREAM, **changes}
    module = ShardData(train=train, **settings)
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    module.trainer = SimpleNamespace(
        world_size=ranks,
        global_rank=rank,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return module


def keys(batches: Any, number: int = 99) -> list[list[str]]:
    return [batch.keys for batch in itertools.islice(batches, number)]


@pytest.fixture
def folder(six_shards: Path) -> str:
    return str(six_shards)


# -- training ----------------------------------------------------------------------------------


def test_ranks_and_workers_divide_one_sequence(folder: str) -> None:
    whole = keys(data(folder).train_dataloader(), 16)
    parts = [keys(data(folder, rank=r, ranks=2).train_dataloader(), 8) for r in range(2)]
    assert [part[i] for i in range(8) for part in parts] == whole
    assert keys(data(folder, workers=2, rank=1, ranks=2).train_dataloader(), 8) == whole[1::2]
    assert keys(data(folder, seed=1).train_dataloader(), 16) != whole


def test_without_a_trainer_it_is_a_single_rank(folder: str) -> None:
    module = data(folder)
    whole = keys(module.train_dataloader(), 4)
    module.trainer = None
    assert keys(module.train_dataloader(), 4) == whole


def train(module: ShardData, batches: int, extra: int = 0) -> list[list[str]]:
    """What a Trainer does: takes so many batches, and has fetched `extra` more."""
    loader = iter(module.train_dataloader())
    fetched = [next(loader) for _ in range(batches + extra)]
    used = [module.on_before_batch_transfer(batch, 0) for batch in fetched[:batches]]
    assert all(batch.trace is None for batch in used), "a model sees images, captions, keys"
    module.trainer.fit_loop.epoch_loop.batch_progress.total.processed += batches
    return [batch.keys for batch in used]


def going_on(module: ShardData, state: dict[str, Any]) -> ShardData:
    """As a Trainer does, whose own count is restored too."""
    module.load_state_dict(state)
    module.trainer.fit_loop.epoch_loop.batch_progress.total.processed = state["batches"]
    return module


def saved(module: ShardData) -> dict[str, Any]:
    return json.loads(json.dumps(module.state_dict()))  # plain: a safe checkpoint can hold it


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_where_it_stopped(folder: str, extra: int, workers: int) -> None:
    """However many batches had been fetched and not used."""
    whole = train(data(folder), 11)
    first = data(folder, workers=workers)
    assert train(first, 5, extra) == whole[:5]
    resumed = going_on(data(folder, workers=2 - workers), saved(first))
    assert train(resumed, 3) == whole[5:8]
    again = going_on(data(folder), saved(resumed))
    assert train(again, 3) == whole[8:], "and after a second time"


def test_a_batch_that_was_not_finished_comes_again(folder: str) -> None:
    """The run is stopped within a training step."""
    module = data(folder)
    train(module, 4)
    fifth = next(itertools.islice(iter(data(folder).train_dataloader()), 4, None))
    module.on_before_batch_transfer(fifth, 0)
    resumed = going_on(data(folder), saved(module))
    assert train(resumed, 1) == [fifth.keys]


def test_another_number_of_ranks_goes_on_with_the_same_sequence(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(data(folder), 16)
    ranks = [data(folder, rank=r, ranks=2) for r in range(2)]
    parts = [train(rank, 4) for rank in ranks]
    assert [part[i] for i in range(4) for part in parts] == whole[:8]
    told: list[Any] = []  # what each rank gathers from all

    def gather(into: list[Any], mine: Any) -> None:
        into[:] = told

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    for rank in ranks:
        rank.settle()
    for rank in ranks:
        cursors = rank.position.cursors
        told.append(({lane: to_plain(c) for lane, c in cursors.items()}, rank.tally))
    states = [saved(rank) for rank in ranks]
    assert states[0] == states[1], "every rank saves the same"
    assert len(json.dumps(states[0]["cursors"])) < 200
    resumed = going_on(data(folder), states[1])
    assert train(resumed, 8) == whole[8:]
    assert saved(resumed)["report"]["used"] == 16 * 4


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 8}, {"seed": 1}, {"lanes": 2}, {"window": 6}, {"resolution": 16},
     {"crop": "random"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_sequence_cannot_be_resumed(folder: str, change: dict[str, int]) -> None:
    module = data(folder)
    train(module, 2)
    name = next(iter(change)).replace("resolution", "identity").replace("crop", "identity")
    with pytest.raises(ValueError, match=rf"resume: the run was trained with {name}="):
        data(folder, **change).load_state_dict(saved(module))


@pytest.mark.parametrize(
    "change", [{"ranks": 3}, {"workers": 3}, {"ranks": 4, "workers": 2}], ids=str
)
def test_lanes_that_cannot_be_divided_are_refused(folder: str, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"data\.lanes=4 over 6 shards makes 4 lanes.*multiple of"):
        data(folder, **change).train_dataloader()


def test_fewer_shards_than_workers_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"data\.lanes=4 over 1 shards makes 1 lanes"):
        data(f"{folder}/00000.tar", workers=2).train_dataloader()


def test_a_train_split_smaller_than_a_batch_is_refused(folder: str) -> None:
    assert keys(data(folder, batch_size=48).train_dataloader(), 1)
    with pytest.raises(ValueError, match=r"data\.train has 48 samples, fewer than one batch of 49"):
        data(folder, batch_size=49).train_dataloader()
    with pytest.raises(ValueError, match=r"one batch of 25 for 2 ranks"):
        data(folder, batch_size=25, ranks=2).train_dataloader()


# -- validation --------------------------------------------------------------------------------


def test_validation_is_the_same_on_each_call_and_equal_on_each_rank(folder: str) -> None:
    module = data(folder)
    expected = [[f"{i:05d}" for i in range(4 * b, 4 * b + 4)] for b in range(5)]
    assert keys(module.val_dataloader()) == keys(module.val_dataloader()) == expected
    assert len(module.val_dataloader()) == 5
    assert keys(data(folder, workers=2, seed=7).val_dataloader()) == expected
    loaders = [data(folder, rank=r, ranks=2).val_dataloader() for r in range(2)]
    assert [len(loader) for loader in loaders] == [2, 2]
    assert [keys(loader) for loader in loaders] == [expected[0:4:2], expected[1:4:2]]


def test_no_more_is_validated_than_there_is(folder: str) -> None:
    assert len(data(folder, val_samples=10**6).val_dataloader()) == 12


def test_a_validation_split_smaller_than_a_batch_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"data\.val gives 48 samples.*batch of 49"):
        data(folder, batch_size=49, val_samples=100).val_dataloader()
    with pytest.raises(ValueError, match=r"data\.val gives 6 samples.*batch of 4 for 2 ranks"):
        data(folder, val_samples=6, ranks=2).val_dataloader()


def test_shards_are_counted_no_further_than_needed(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_into = []
    monkeypatch.setattr(ShardData, "_count", lambda *told: looked_into.append(told) or 8)
    data(folder, val_samples=8).val_dataloader()
    assert len(looked_into) == 1


def test_the_stats_are_trusted_unless_a_filter_changes_what_they_say(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "one", shards=1, each=8)
    (shards / "00000_stats.json").write_text('{"successes": 6}')
    assert len(data(str(shards), batch_size=1).val_dataloader()) == 6
    filters = [{"name": "late", "field": "key", "none_of": ["00000"], "missing": "drop"}]
    assert len(data(str(shards), batch_size=1, filters=filters).val_dataloader()) == 7


# -- what was left out -------------------------------------------------------------------------


def dirty(folder: Path, bad: int) -> str:
    samples = [good(i) for i in range(20)]
    samples += [(f"bad{i}", {"png": b"", "txt": b"x"}) for i in range(bad)]
    write_shard(folder / "00000.tar", samples)
    return str(folder)


def test_what_was_left_out_is_counted_as_it_is_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = data(dirty(tmp_path, bad=4), lanes=1, window=24)
    with caplog.at_level(logging.WARNING):
        train(module, 10, extra=5)
        report = saved(module)["report"]
    assert report["used"] == 40
    assert 4 <= report["bad"] <= 8, "two passes, no more"
    assert len(caplog.messages) == 1, "one warning of a kind"
    assert "image_empty" in caplog.messages[0]
    resumed = going_on(data(dirty(tmp_path, bad=4), lanes=1, window=24), saved(module))
    train(resumed, 5)
    whole = data(dirty(tmp_path, bad=4), lanes=1, window=24)
    train(whole, 15)
    assert saved(resumed)["report"]["bad"] == saved(whole)["report"]["bad"]


def test_too_many_bad_samples_end_the_run_with_the_reasons(tmp_path: Path) -> None:
    errors = Patience(
        max_bad_fraction=0.2, min_seen=20, max_consecutive=50, max_lost_shards=9, unreachable="skip"
    )
    module = data(dirty(tmp_path, bad=10), lanes=1, window=30, errors=errors)
    with pytest.raises(ValueError, match=r"samples are bad.*max_bad_fraction=0\.2.*image_empty"):
        train(module, 30)


@pytest.mark.parametrize(
    "sources",
    [
        {"a": {"shards": "{}", "weight": 0}},
        {"a": {"shards": "{}"}},
        {"a": {"shards": "{}", "weight": 1, "wieght": 1}},
    ],
)
def test_a_source_needs_shards_and_a_weight(folder: str, sources: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.train\.a=.*expected \{shards: FOLDER, weight: W"):
        data(sources).shards("train")


def test_several_sources_are_named_and_mixed(folder: str, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", shards=1, each=8)
    sources = {"a": {"shards": folder, "weight": 1}, "b": {"shards": str(other), "weight": 3}}
    module = data(sources, val_samples=4)
    assert len(module.shards("train")) == 7
    train(module, 50)
    used = {name: told["used"] for name, told in saved(module)["report"]["sources"].items()}
    assert sum(used.values()) == 200
    assert 130 < used["b"] < 170
    assert module.identity != data(folder).identity


# -- which data --------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["{}", "{}/*.tar", "{}/{{00000..00005}}.tar"])
def test_a_folder_a_glob_and_a_brace_list_are_the_same_data(folder: str, pattern: str) -> None:
    module = data(pattern.format(folder))
    assert module.identity == data(folder).identity
    assert keys(module.train_dataloader(), 5) == keys(data(folder).train_dataloader(), 5)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("pattern", ["nowhere/at/all", "pipe:cat x.tar", "http://host/x.tar"])
def test_what_is_no_local_folder_is_refused_by_key(folder: str, split: str, pattern: str) -> None:
    module = data(**{"train": folder, "val": folder, split: pattern})
    with pytest.raises(ValueError, match=rf"data\.{split}='{pattern}'"):
        getattr(module, f"{split}_dataloader")()


def test_a_split_that_is_not_there_names_those_that_are(folder: str) -> None:
    assert not data(folder).has("test")
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, val"):
        data(folder).prompts("test", 1)


def test_the_identity_is_the_content_and_the_resolution(folder: str, tmp_path: Path) -> None:
    same = folder_of(tmp_path / "same", shards=6, each=8)
    assert data(str(same)).identity == data(folder).identity
    assert data(folder, resolution=16).identity != data(folder).identity
    assert data(f"{folder}/0000[0-4].tar").identity != data(folder).identity
    # Of the same name and the same padded size:
    write_shard(same / "00000.tar", [good(100 + i) for i in range(8)])
    sizes = {(root / "00000.tar").stat().st_size for root in (Path(folder), same)}
    assert len(sizes) == 1
    assert data(str(same)).identity != data(folder).identity


# -- for everybody else ------------------------------------------------------------------------


def test_filters_that_differ_late_in_a_long_expression_are_other_data(folder: str) -> None:
    def matching(end: str) -> str:
        rule = {"name": "x", "field": "caption", "matches": f"{'a' * 300}{end}", "missing": "keep"}
        return data(folder, filters=[rule]).identity

    assert matching("b") == matching("b") != matching("c")


def test_batches_are_the_first_of_a_split_on_every_rank(folder: str) -> None:
    first = [[f"{i:05d}" for i in range(4 * b, 4 * b + 4)] for b in range(3)]
    assert keys(data(folder).batches("val", 3)) == first
    assert keys(data(folder, rank=1, ranks=2).batches("train", 3)) == first
    assert len(keys(data(folder).batches("train", 99))) == 12


def test_captions_and_prompts_read_no_picture(tmp_path: Path, caplog: Any) -> None:
    asked = {"background": "white"}
    told = json.dumps({"prompt": {"caption": "drawn", "asked": asked}}).encode()
    caption = b"\xef\xbb\xbf  said \n"  # with a byte order mark
    unread = {"png": b"not read"}
    write_shard(
        tmp_path / "00000.tar",
        [
            ("a", {**unread, "txt": caption, "json": told}),
            ("b", {**unread, "txt": "caf\u00e9".encode(), "json": b'{"prompt": null}'}),
            ("c", {**unread, "txt": b"\xff\xfe"}),
            ("d", {**unread, "txt": b"list", "json": b"[1, 2]"}),
            ("e", {**unread, "txt": b"broken", "json": b"{"}),
            ("f", {**unread, "txt": b"deep", "json": b"[" * 200_000}),
            ("g", unread),
            ("h", {**unread, "txt": b"last"}),
        ],
    )
    module = data(str(tmp_path))
    texts = ["said", "caf\u00e9", "list", "broken", "deep", "last"]
    with caplog.at_level(logging.WARNING):
        assert list(module.captions("train", 99)) == texts
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        f"left out {tmp_path}/00000.tar:{key}" for key in "cg"
    ]
    assert list(module.captions("train", 3)) == texts[:3]
    prompts = module.prompts("train", 99)
    assert prompts[0] == ("drawn", asked, "a")
    assert prompts[1:] == [(text, None, key) for text, key in zip(texts[1:], "bdefh", strict=True)]
    assert len(module.prompts("train", 2)) == 2


def test_shapes_are_rendered_on_first_use_and_streamed(tmp_path: Path) -> None:
    module = ShapesData(
        root=str(tmp_path), world_seed=0, shard_size=4, phrasings=2, pairs=0.5, resolution=16,
        samples={"train": 16, "val": 8, "test": 4, "heldout": 4}, **STREAM | {"val_samples": 8},
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)
    assert torch.isfinite(batch.images).all()
    assert len(module.val_dataloader()) == 2
    assert len(list(module.captions("heldout", 99))) == 4
    prompt = module.prompts("test", 1)[0]
    assert prompt.scene is not None
    assert prompt.scene["background"] in prompt.caption


def test_a_picture_that_cannot_be_read_leaves_the_batches_full(tmp_path: Path) -> None:
    bad = ("bad", {"png": encode(noise(0))[:40], "txt": b"x"})
    write_shard(tmp_path / "00000.tar", [good(0), bad, *(good(i) for i in range(1, 8))])
    module: ShardData = data(str(tmp_path), batch_size=4)
    assert all(len(batch) == 4 for batch in keys(module.train_dataloader(), 6))
    with pytest.raises(ValueError, match="8 good samples, not one batch of 9"):
        keys(data(str(tmp_path), batch_size=9).val_dataloader())

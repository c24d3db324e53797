"""Frozen networks run once: the same training without them, and nothing taken on trust."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from conftest import mini_overrides
from salon import checkpoint, precompute, run, stages
from salon.config import build
from salon.data.precomputed import INDEX, unpacked
from salon.data.reasons import Bad
from salon.types import Latents
from tars import write_shard
from test_run import assert_same, door

MODEL = "latent_diffusion/tiny"
# Of the captions of a picture one is drawn each time.
SEVERAL = ["data.caption.keys=['json:captions']"]
Mini = Callable[..., DictConfig]


def prepared(cfg: DictConfig) -> tuple[Any, Any]:
    data = build(cfg.data, "data")
    data.prepare_data()
    return run.make_model(cfg, stages.parts(cfg, data.identity, run.train), data.identity), data


def write(cfg: DictConfig, workers: int = 0) -> Path:
    model, data = prepared(cfg)
    told = {"batch_size": 10, "workers": workers, "device": torch.device("cpu")}
    return precompute.write(model, data, **told)[0]


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.endswith(".lock")}


@pytest.fixture
def made(mini: Mini, mini_root: Path) -> Path:
    """What the miniature stages made of the miniature shapes."""
    return write(mini(MODEL, *SEVERAL, f"data.precomputed_dir={mini_root}/made"))


def test_the_door_writes_what_training_asks_for(mini_root: Path, tmp_path: Path) -> None:
    given = [*mini_overrides(MODEL, mini_root), f"data.precomputed_dir={tmp_path}/made"]
    told = [*given, "data.precomputed=true", f"hydra.run.dir={tmp_path}/run"]
    early = door("train.py", *told)
    assert early.returncode == 2
    assert "data.precomputed: " in early.stderr
    assert "python -m salon.data precompute" in early.stderr
    done = door("-m", "salon.data", "precompute", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "128 samples in" in done.stdout
    done = door("train.py", *told)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "summary.json").exists()
    done = door("-m", "salon.jury", "evaluate", f"checkpoint={tmp_path}/run", "images=16")
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_batches_are_those_of_the_pictures(made: Path, mini: Mini, mini_root: Path) -> None:
    """The same keys and captions in the same order, and what the networks make of them."""
    more = [*SEVERAL, f"data.precomputed_dir={mini_root}/made", "data.precomputed=true"]
    model, plain = prepared(mini(MODEL, *SEVERAL))
    _, data = prepared(mini(MODEL, *more))
    data.use_precomputed(precompute.identities(model))
    pairs = itertools.islice(
        zip(plain.train_dataloader(), data.train_dataloader(), strict=False), 30
    )
    seen = set()
    with torch.no_grad():
        for batch, latents in pairs:
            assert isinstance(latents, Latents)
            assert latents.keys == batch.keys
            assert latents.captions == batch.captions
            assert latents.trace.cursor == batch.trace.cursor
            seen |= set(zip(batch.keys, batch.captions, strict=True))
            mean, std = model.moments(batch)
            torch.testing.assert_close(latents.mean, mean, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(latents.std, std, atol=1e-3, rtol=1e-3)
            text = model.text(batch.captions)
            assert torch.equal(latents.text.mask, text.mask)
            for found, wanted in zip(latents.text, text, strict=True):
                torch.testing.assert_close(found.float(), wanted.float(), atol=5e-3, rtol=1e-3)
    assert len(seen) > 96, "a picture comes with another of its captions"
    for batch, latents in zip(plain.val_dataloader(), data.val_dataloader(), strict=True):
        assert (latents.keys, latents.captions) == (batch.keys, batch.captions)


def test_training_is_the_same_and_runs_neither_network(
    made: Path, mini: Mini, mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*SEVERAL, "callbacks.quality=null", "callbacks.samples=null"]
    run.train(mini(MODEL, *more), tmp_path / "plain")
    from salon.nn.autoencoder import AutoencoderKL
    from salon.text.clip import ClipTower

    def forbidden(*_: Any) -> None:
        raise AssertionError("the autoencoder is run")

    asked: list[str] = []
    real = ClipTower.encode
    monkeypatch.setattr(AutoencoderKL, "encode", forbidden)
    monkeypatch.setattr(ClipTower, "encode", lambda self, c: asked.extend(c) or real(self, c))
    more += ["data.precomputed=true", f"data.precomputed_dir={mini_root}/made"]
    run.train(mini(MODEL, *more), tmp_path / "made")
    # Drawing two pixels' worth of FLOPs asks for "a picture"; training asks for nothing else.
    assert set(asked) <= {"", "a picture"}
    one, other = (
        json.loads((tmp_path / name / "summary.json").read_text())["metrics"]
        for name in ("plain", "made")
    )
    assert other["train/loss"] == pytest.approx(one["train/loss"], rel=2e-3)
    assert other["val/loss"] == pytest.approx(one["val/loss"], rel=2e-3)
    first, second = (checkpoint.read(tmp_path / name)["state_dict"] for name in ("plain", "made"))
    for name in ("latent_mean", "latent_std"):
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-3)


def test_a_resumed_run_is_the_uninterrupted_one(
    made: Path, mini: Mini, mini_root: Path, tmp_path: Path
) -> None:
    more = [*SEVERAL, "data.precomputed=true", f"data.precomputed_dir={mini_root}/made"]
    run.train(mini(MODEL, *more), tmp_path / "whole")
    run.train(mini(MODEL, *more, "budget.batches=2"), tmp_path / "halves")
    cfg = mini(MODEL, *more, f"resume={tmp_path}/halves")
    run.train(cfg, tmp_path / "halves")
    assert_same(tmp_path / "whole", tmp_path / "halves")
    cfg = mini(MODEL, *SEVERAL, f"resume={tmp_path}/halves", "budget.batches=6")
    with pytest.raises(ValueError, match=r"resume: the run was trained with"):
        run.train(cfg, tmp_path / "halves")


# -- the job -----------------------------------------------------------------------------------


def test_a_job_that_stopped_goes_on_and_workers_change_no_byte(
    made: Path, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = mini(MODEL, *SEVERAL, f"data.precomputed_dir={tmp_path}")
    real, calls = precompute.Job.encoded, itertools.count()

    def breaks(self: Any, read: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(self, read)

    monkeypatch.setattr(precompute.Job, "encoded", breaks)
    with pytest.raises(KeyboardInterrupt):
        write(cfg)
    folder = tmp_path / made.name
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.tar")}
    assert len(before) == 1, "one shard was whole"
    assert not (folder / INDEX).exists()
    monkeypatch.setattr(precompute.Job, "encoded", real)
    assert write(cfg, workers=2) == folder
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert files_of(folder) == files_of(made)
    assert not list(folder.rglob("*.partial"))


def test_what_is_bad_or_filtered_is_left_out_and_told(mini: Mini, tmp_path: Path) -> None:
    cfg = mini(MODEL, f"data.precomputed_dir={tmp_path}/made")
    model, data = prepared(cfg)
    shard = data.shards("train")[1]
    copies = tmp_path / "copies"
    shutil.copytree(Path(shard).parent.parent, copies)
    bad = [(f"bad{i}", {"png": b"", "txt": b"x", "json": b"{}"}) for i in range(3)]
    write_shard(copies / "train" / "00009.tar", bad)
    data.patterns["train"] = str(copies / "train")
    folder, tally = precompute.write(
        model, data, batch_size=7, workers=0, device=torch.device("cpu")
    )
    assert tally.report()["sources"]["train"]["dropped"]["image_empty"]["count"] == 3
    assert tally.used.total() == 96 + 32
    again, same = precompute.write(model, data, batch_size=7, workers=0, device=torch.device("cpu"))
    assert (again, same.report()) == (folder, tally.report()), "also where all was there already"


def test_a_shard_that_cannot_be_fetched_is_not_taken_for_an_empty_one(
    mini: Mini, tmp_path: Path
) -> None:
    cfg = mini(MODEL, f"data.precomputed_dir={tmp_path}/made")
    model, data = prepared(cfg)
    copies = tmp_path / "copies"
    shutil.copytree(Path(data.shards("train")[0]).parent.parent, copies)
    data.patterns["train"] = [str(copies / "train" / f"{i:05d}.tar") for i in range(4)]
    told = {"batch_size": 7, "workers": 0, "device": torch.device("cpu")}
    sources = data.sources("train")
    data.sources = lambda split: sources if split == "train" else type(data).sources(data, split)
    identity = data.identity
    data.__dict__["identity"] = identity
    (copies / "train" / "00002.tar").rename(copies / "away")
    with pytest.raises(ValueError, match=r"00002\.tar cannot be fetched: shard_missing"):
        precompute.write(model, data, **told)
    (copies / "away").rename(copies / "train" / "00002.tar")
    assert precompute.write(model, data, **told)[1].used.total() == 96 + 32


# -- what is refused ---------------------------------------------------------------------------


def test_other_networks_are_refused_by_name(made: Path, mini: Mini, tmp_path: Path) -> None:
    model, data = prepared(mini(MODEL, *SEVERAL, f"data.precomputed={made}"))
    networks = precompute.identities(model)
    data.use_precomputed(networks)
    with torch.no_grad():
        next(model.text.parameters()).add_(1e-6)
    other = precompute.identities(model)
    assert other["autoencoder"] == networks["autoencoder"]
    with pytest.raises(ValueError, match=rf"another text \({networks['text']}\).*{other['text']}"):
        data.use_precomputed(other)
    with pytest.raises(ValueError, match="another data"):
        prepared(mini(MODEL, f"data.precomputed={made}"))[1].use_precomputed(networks)
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "train" / "0" / "00000001.tar").unlink()
    data = prepared(mini(MODEL, *SEVERAL, f"data.precomputed={copy}"))[1]
    data.use_precomputed(networks)
    with pytest.raises(ValueError, match=r"has 3 shards, expected 4"):
        data.train_dataloader()
    for damage in ("{", "[]", '{"layout": 1}'):
        (copy / INDEX).write_text(damage)
        with pytest.raises(ValueError, match="is damaged"):
            data.use_precomputed(networks)
    (copy / INDEX).unlink()
    with pytest.raises(ValueError, match="not there, or not finished"):
        data.use_precomputed(networks)


def test_a_folder_of_something_else_is_not_written_into(
    made: Path, mini: Mini, tmp_path: Path
) -> None:
    model, data = prepared(mini(MODEL, f"data.precomputed={made}"))  # other captions
    before = files_of(made)
    with pytest.raises(ValueError, match="holds shards of other data or networks"):
        precompute.write(model, data, batch_size=7, workers=0, device=torch.device("cpu"))
    assert files_of(made) == before
    (tmp_path / "train" / "0").mkdir(parents=True)
    write_shard(tmp_path / "train" / "0" / "00000.tar", [])
    data.precomputed = str(tmp_path)
    with pytest.raises(ValueError, match="holds shards of other data or networks"):
        precompute.write(model, data, batch_size=7, workers=0, device=torch.device("cpu"))


def test_other_validation_pictures_are_another_folder(mini: Mini, tmp_path: Path) -> None:
    _, data = prepared(mini(MODEL))
    shard = Path(data.shards("val")[0])
    copies = tmp_path / "val"
    shutil.copytree(shard.parent, copies)
    _, other = prepared(mini(MODEL))
    other.patterns["val"] = str(copies)
    assert other.read_identity == data.read_identity
    picture = (f"{'0' * 9}", {"png": b"", "txt": b"x"})
    write_shard(copies / shard.name, [picture] * 40)
    _, other = prepared(mini(MODEL))
    other.patterns["val"] = str(copies)
    assert other.identity == data.identity, "stages are trained on the training pictures alone"
    assert other.read_identity != data.read_identity


@pytest.mark.parametrize("change", ["data.crop=random", "data.buckets.step=8"])
def test_what_is_no_single_square_is_refused(mini: Mini, change: str) -> None:
    with pytest.raises(ValueError, match=rf"{change.partition('=')[0]}.*asks for others"):
        build(mini(MODEL, change, "data.precomputed=true").data, "data")
    model, data = prepared(mini(MODEL, change))
    with pytest.raises(ValueError, match="precompute keeps one square"):
        precompute.write(model, data, batch_size=7, workers=0, device=torch.device("cpu"))


def test_a_family_that_needs_pictures_says_so(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.precomputed: CVAE needs the pictures"):
        run.train(mini("cvae/tiny", "data.precomputed=true"), tmp_path)


def test_a_foreign_sample_is_counted_and_left_out(made: Path, mini: Mini, tmp_path: Path) -> None:
    model, data = prepared(mini(MODEL, *SEVERAL, f"data.precomputed={made}"))
    data.use_precomputed(precompute.identities(model))
    (source,), reader = data._fed("train")
    good = next(iter(reader.candidates(source.shards[0], "train")))
    members = dict(good.encoded.members)
    told = json.loads(members["json"])

    def told_as(**changes: Any) -> bytes:
        return json.dumps({**told, "precomputed": {**told["precomputed"], **changes}}).encode()

    several = len(told["precomputed"]["captions"])
    latent = np.load(io.BytesIO(members["latent"]))
    wrong = {
        "latent_mismatch": [
            {"json": told_as(networks={"autoencoder": "0", "text": "0"})},
            {"json": told_as(captions=["another"] * several)},
            {"json": json.dumps({**told, "precomputed": None}).encode()},
        ],
        "latent_missing": [{"latent": None}, {"pooled": None}, {"tokens": None}, {"json": None}],
        "latent_corrupt": [
            {"latent": npy(latent.astype(np.float32))},
            {"latent": npy(latent[:1])},
            {"latent": members["latent"][:-2]},
            {"latent": members["latent"] + b"\0\0"},
            {"latent": b""},
            {"latent": npy(np.full_like(latent, np.nan))},
            {"pooled": npy(np.full((several, 3), np.inf, np.float16))},
            {"latent": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000},
            {"tokens": npy(np.zeros((1, 3), np.float16))},
            {"json": told_as(lengths=[-1] * several)},
            {"json": told_as(lengths="abc")},
            {"json": told_as(lengths=[1e9] * several)},
        ],
    }
    samples, expected = [], []
    for reason, cases in wrong.items():
        for changes in cases:
            changed = {k: v for k, v in {**members, **changes}.items() if v is not None}
            samples.append((f"{len(samples):05d}", changed))
            expected.append(reason)
    shard = write_shard(tmp_path / "00000.tar", samples)
    chance = np.random.default_rng(0)
    found = []
    for item in reader.candidates(str(shard), "train"):
        made_of = item if hasattr(item, "reason") else reader.decode(item, chance)
        found.append(made_of.reason)
    assert found == expected


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=values.dtype == object)
    return buffer.getvalue()


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("payload-was-run"),)


def test_an_array_is_a_view_and_nothing_is_unpickled_or_allocated(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert np.array_equal(unpacked(npy(values), (2, 3)), values)
    for raw in (
        npy(np.array([Payload()], dtype=object)),
        npy(np.asfortranarray(np.zeros((2, 3), np.float16))),
        npy(np.zeros((3, 2), np.float16)),
        b"\x93NUMPY\x02\x00" + npy(values)[8:],
        # Headers that promise a terabyte, and that no parser ends with well.
        npy(values).replace(b"(2, 3)", b"(9999999, 99999)")[:200],
        npy(values)[:10] + b"{'descr': '<f2'" + b"(" * 100 + b"\n" + bytes(12),
        npy(values)[:10] + b"\xff" * 118 + bytes(12),
        npy(np.full((2, 3), np.inf, np.float16)),
    ):
        with pytest.raises(Bad, match="latent_corrupt"):
            unpacked(raw, (2, 3))
    assert not Path("payload-was-run").exists()


def test_values_that_float16_cannot_hold_are_refused() -> None:
    from salon.data.precomputed import packed

    with pytest.raises(ValueError, match=r"7e\+04 does not fit into float16"):
        packed(torch.tensor([1.0, 7e4]))

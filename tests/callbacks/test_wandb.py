"""A run as W&B keeps it: read back from its offline file."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import wandb_offline
from conftest import MINI_DATA, ROOT
from salon import checkpoint, run, stages
from salon.callbacks import wandb_run
from salon.models.latent_diffusion import LatentDiffusion
from salon.types import Batch
from wandb_offline import OfflineRun

MODEL = "latent_diffusion/tiny"
Mini = Callable[..., DictConfig]


@pytest.fixture
def home(offline_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder, in which W&B leaves nothing."""
    home = offline_wandb / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    before = os.environ.copy()
    yield home
    assert not [path for path in home.rglob("*") if "wandb" in str(path)]
    changed = {k for k in before | os.environ if before.get(k) != os.environ.get(k)}
    assert not changed & set(wandb_run.HOMES)


@pytest.fixture
def folder(mini: Mini, mini_root: Path, home: Path) -> Path:
    """A run folder of latent diffusion, with stages of its own; trained once for all tests."""
    folder = mini_root / "with-wandb"
    if not (folder / "summary.json").is_file():
        options = (
            "logger=wandb", "logger.group=studies", "logger.tags=[small,first]",
            "logger.notes=of two batches", "callbacks.best={}",
        )  # fmt: skip
        run.train(mini(MODEL, *options, f"stages_dir={folder}/stages"), folder)
    return folder


def only(folder: Path) -> OfflineRun:
    (found,) = wandb_offline.find(folder)
    return found


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from leaves(item)
    else:
        yield node


def test_what_the_run_is_called(folder: Path) -> None:
    told = only(folder)
    assert (told.exit_code, told.job_type, told.project) == (0, "train", "salon")
    assert (told.group, told.tags) == ("studies", ["small", "first"])
    assert told.notes == "of two batches"
    assert (folder / "wandb_id.txt").read_text() == told.run_id


def test_its_config_is_nested_and_resolved(folder: Path) -> None:
    config = only(folder).config
    written = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(written, dict)
    assert {key: config[key] for key in written} == written
    assert set(config) - set(written) == {"choices", "code", "lineage"}
    assert config["code"]["salon"] == metadata.version("salon")
    assert len(config["code"]["git_commit"] or 40 * "x") == 40
    budget = {key: value for key, value in config["budget"].items() if value is not None}
    assert budget == {"batches": 4, "validate_every": 2, "checkpoint_every": 2}
    assert config["model"]["resolution"] == config["data"]["resolution"] == 16
    assert not [value for value in leaves(config) if isinstance(value, str) and "${" in value]


@pytest.mark.parametrize(
    "name",
    [
        "quality/fd_clip",
        "quality/clip_score",
        "quality/prompt_accuracy",
        "quality/prompt_accuracy_chance",
        "quality/prompt_accuracy_real",
        "quality/images",
        "cost/train_flops",
        "val/loss",
    ],
)
def test_series_stand_over_images_seen(folder: Path, name: str) -> None:
    series = only(folder).series(name)
    assert [x for x, _ in series] == [16, 32]
    assert all(type(x) is int for x, _ in series)
    assert all(isinstance(value, int | float) for _, value in series)


def test_every_row_has_the_clock(folder: Path) -> None:
    told = only(folder)
    assert told.steps["*"] == "images_seen"
    assert told.history
    for row in told.history:
        assert (row["images_seen"], row["batches"]) in {(16, 2), (32, 4)}


def test_the_oracle_reads_real_pictures_and_beats_chance_on_them(folder: Path) -> None:
    last = only(folder).summary
    assert last["quality/prompt_accuracy_real"] > 0.9
    assert 0 <= last["quality/prompt_accuracy_chance"] < 0.5
    assert last["quality/images"] == 16


def test_metrics_csv_says_the_same(folder: Path) -> None:
    rows = (folder / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    at = names.index("quality/fd_clip")
    series = only(folder).series("quality/fd_clip")
    assert [float(row.split(",")[at]) for row in rows[1:]] == pytest.approx([y for _, y in series])


def test_pictures_are_there_as_media(folder: Path) -> None:
    told = only(folder)
    series = told.series("media/samples")
    assert [x for x, _ in series] == [16, 32]
    for _, media in series:
        assert media["count"] == len(media["filenames"]) == 4  # 2 prompts, 2 seeds
        assert "(seed 0)" in media["captions"][0]
        for name in media["filenames"]:
            assert Image.open(told.folder / "files" / name).size == (16, 16)


def test_pictures_are_there_as_a_table_to_search_by_prompt(folder: Path) -> None:
    told = only(folder)
    series = told.series("tables/samples")
    assert [x for x, _ in series] == [16, 32]
    for seen, table in series:
        contents = json.loads((told.folder / "files" / table["path"]).read_text())
        assert contents["columns"] == ["images_seen", "prompt", "seed", "image"]
        assert [(row[0], row[2]) for row in contents["data"]] == [(seen, s) for s in (0, 1, 0, 1)]
        prompts = [row[1] for row in contents["data"]]
        assert prompts[0] == prompts[1] != prompts[2]
    # Each table is also an artifact with its pictures, whose files are in the run's folder.
    (versions,) = [v for name, v in told.artifacts.items() if "tablessamples" in name]
    assert len(versions) == 2
    for files in versions:
        for file in files.values():
            assert file.is_file(), file
            assert folder in file.parents
        table = json.loads(files["tables/samples.table.json"].read_text())
        assert [Image.open(files[row[3]["path"]]).size for row in table["data"]] == [(16, 16)] * 4


def test_its_lineage_is_data_stages_and_checkpoint(folder: Path) -> None:
    """Offline too: in the config, and as artifacts that a sync makes."""
    told = only(folder)
    lineage = told.config["lineage"]
    identity = json.loads((folder / "summary.json").read_text())["data"]
    assert lineage["data"] == {"artifact": f"data-{identity}", "identity": identity}
    assert set(lineage["stages"]) == {"text", "autoencoder"}
    used = {f"data-{identity}"}
    for one in lineage["stages"].values():
        stage = only(Path(one["path"]).parents[1])
        assert one["run"] == stage.run_id
        assert one["artifact"] == f"model-{stage.run_id}"
        assert one["sha256"] == checkpoint.digest(one["path"])
        assert stage.aliases[one["artifact"]] == [["last", "latest"]]
        assert stage.references[one["artifact"]] == told.references[one["artifact"]]
        assert stage.metadata[one["artifact"]]["sha256"] == one["sha256"]
        assert stage.used == {f"data-{identity}"}
        used.add(one["artifact"])
    assert told.used == used
    (references,) = told.references[f"data-{identity}"]
    assert len(references) == 4 + 2
    assert all(Path(uri.removeprefix("file://")).is_file() for uri in references.values())
    train = told.metadata[f"data-{identity}"]["splits"]["train"]
    assert (train["shards"], train["samples"]) == (4, 96)
    assert train["samples_of_shards"] == [24] * 4
    assert train["bytes"] > 0


def test_its_checkpoints_are_versions_of_one_artifact(folder: Path) -> None:
    told = only(folder)
    name = f"model-{told.run_id}"
    assert told.aliases[name] == [["best", "latest"], ["last", "latest"]]
    assert told.references[name] == [
        {f"{kind}.ckpt": (folder / "checkpoints" / f"{kind}.ckpt").as_uri()}
        for kind in ("best", "last")
    ]
    assert told.artifacts[name] == [{}, {}], "nothing large leaves the machine by default"
    kept = told.config["lineage"]["checkpoint"]
    assert kept["last"]["sha256"] == checkpoint.digest(folder)
    assert kept["best"]["sha256"] == checkpoint.digest(folder / "checkpoints" / "best.ckpt")


def test_the_best_checkpoint_is_of_the_best_validation(folder: Path) -> None:
    series = only(folder).series("quality/prompt_accuracy")
    best = max(value for _, value in series)
    first = next(seen for seen, value in series if value == best)
    summary = json.loads((folder / "summary.json").read_text())["metrics"]
    assert summary["best/quality/prompt_accuracy"] == pytest.approx(best)
    assert summary["best/images_seen"] == first
    model = checkpoint.load(folder / "checkpoints" / "best.ckpt")
    assert model.sample(["a red circle"], [0]).shape == (1, 3, 16, 16)
    contents = checkpoint.read(folder / "checkpoints" / "best.ckpt")
    processed = contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert processed * 8 == first


def test_a_moved_folder_still_has_its_media(folder: Path, tmp_path: Path) -> None:
    """Paths of media are inside the run's own folder, wherever that is synced from."""
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(folder, moved)
    told = only(moved)
    assert moved in told.folder.parents
    names = [n for _, media in told.series("media/samples") for n in media["filenames"]]
    names += [table["path"] for _, table in told.series("tables/samples")]
    assert len(names) == 2 * 4 + 2
    for name in names:
        assert (told.folder / "files" / name).is_file()


def test_a_stage_is_told_as_what_it_is(mini: Mini) -> None:
    cfg = mini(MODEL, "logger=wandb", "logger.name=mine", "logger.group=g", "logger.tags=[t]")
    chosen = {"model": MODEL, "data": "shapes", "experiment": "demo", "trainer": "cpu"}
    cfg.logger.job = {"sweep": "of-many", "choices": chosen, "overrides": ["model.drop=0"]}
    logger = stages.composed(cfg, "clip/tiny", ["batch_size=8"]).logger
    assert OmegaConf.to_container(logger.job) == {
        "sweep": "of-many",
        "choices": {"model": "clip/tiny", "data": "shapes", "trainer": "cpu"},
        "overrides": ["batch_size=8"],
    }
    assert (logger.name, logger.group, list(logger.tags)) == (None, "g", ["t"])


def test_stages_are_runs_of_their_own(folder: Path) -> None:
    found = [only(stage) for stage in (folder / "stages").iterdir() if stage.is_dir()]
    assert len(found) == 2
    for stage in found:
        assert (stage.job_type, stage.exit_code, stage.group) == ("stage", 0, "studies")
        assert stage.series("val/loss") or stage.series("val/text_to_image_r@1")
        assert stage.config["job_type"] == "stage"
        assert stage.name == stage.folder.parents[1].name, "as their folder, which is their key"
        assert f"model:{stage.config['choices']['model']}" in stage.tags
    assert len({stage.run_id for stage in [*found, only(folder)]}) == 3


def test_a_failing_run_is_closed_as_failed_and_says_why(
    mini: Mini, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LatentDiffusion.training_step

    def step(self: LatentDiffusion, batch: Batch, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise RuntimeError("the third batch was too much")
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(LatentDiffusion, "training_step", step)
    stages = f"stages_dir={folder}/stages"
    with pytest.raises(RuntimeError, match="the third batch was too much"):
        run.train(mini(MODEL, "logger=wandb", stages), tmp_path / "failing")
    assert wandb.run is None
    failed = only(tmp_path / "failing")
    assert failed.exit_code == 1
    assert [x for x, _ in failed.series("val/loss")] == [16]  # what was measured is kept

    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run.train(mini(MODEL, "logger=wandb", stages), tmp_path / "next")
    after = only(tmp_path / "next")
    assert after.exit_code == 0
    assert after.run_id != failed.run_id
    assert len(after.series("val/loss")) == 2


def test_jobs_of_a_multirun_are_runs_of_their_own(home: Path, mini_root: Path) -> None:
    sweep = home.parent / "sweep"
    done = subprocess.run(
        [
            sys.executable, "train.py", "-m", "model=autoencoder/tiny", "seed=0,1", *MINI_DATA,
            "model.network.channels=[16]", "batch_size=8", "gate=null", "budget.batches=2",
            "budget.validate_every=2", f"data.root={mini_root}/data", "logger=wandb",
            "logger.mode=offline", f"hydra.sweep.dir={sweep}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    jobs = [only(sweep / f"seed-{seed}") for seed in (0, 1)]
    assert [job.group for job in jobs] == ["sweep", "sweep"]
    for seed, job in enumerate(jobs):
        assert job.name.startswith(f"autoencoder/tiny seed={seed} resolution=16 samples={{train")
        assert len(job.name) == 120
        assert {"model:autoencoder/tiny", "data:shapes", "batches=2"} <= set(job.tags)
        assert not [tag for tag in job.tags if "seed" in tag or str(mini_root) in tag]
        assert job.config["choices"]["model"] == "autoencoder/tiny"
        assert job.config["choices"]["logger"] == "wandb"
        end = f"wandb sync {sweep}/seed-{seed}/wandb/offline-run-*"
        assert done.stdout.count(end) == 2, "at the beginning and at the end"
    assert f"W&B, what is kept offline:\n  wandb sync {sweep}/*/wandb/offline-run-*" in done.stdout
    assert [job.config["seed"] for job in jobs] == [0, 1]
    assert [job.exit_code for job in jobs] == [0, 0]
    assert jobs[0].run_id != jobs[1].run_id
    for job in jobs:
        assert [x for x, _ in job.series("val/loss")] == [16]


# -- the mode --------------------------------------------------------------------------------------


def test_auto_without_an_account_is_offline_and_says_how_to_upload(
    mini: Mini,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    caplog.set_level(logging.INFO, logger="salon.callbacks.wandb_run")
    made = run.make_loggers(mini(MODEL, "logger=wandb"), tmp_path / "run")
    made[-1].close(failed=False)  # type: ignore[attr-defined]
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("_run")]
    assert "offline (nobody is logged in)" in line
    assert f"wandb sync {tmp_path}/run/wandb/offline-run-*" in line
    assert only(tmp_path / "run").exit_code == 0


def test_a_mode_that_there_is_not(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger.mode='of'; expected one of auto, online"):
        run.make_loggers(mini(MODEL, "logger=wandb", "logger.mode=of"), tmp_path)
    assert wandb.run is None


@pytest.mark.parametrize(("known", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_where_the_user_is_logged_in(
    mini: Mini, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, mode: str
) -> None:
    asked: list[str] = []

    def init(*, mode: str, **_: Any) -> None:
        asked.append(mode)
        raise ConnectionError("no network here")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb_run, "logged_in", lambda: known)
    monkeypatch.setattr(wandb, "init", init)
    (_, logger) = run.make_loggers(mini(MODEL, "logger=wandb"), tmp_path / "run")
    assert asked == (["online", "offline"] if mode == "online" else ["offline"])
    logger.log_metrics({"x": 1})
    logger.close(failed=False)  # type: ignore[attr-defined]


def test_who_is_logged_in(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    assert not wandb_run.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    wandb.teardown()
    (home / ".netrc").write_text("machine other.example.org login user password secret\n")
    assert not wandb_run.logged_in()
    (home / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    assert wandb_run.logged_in()
    (home / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_run.logged_in()
    monkeypatch.delenv("WANDB_CACHE_DIR")


# -- the reader ------------------------------------------------------------------------------------


def test_the_reader_says_which_versions_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "__version__", "9.9.9")
    with pytest.raises(RuntimeError, match=r"wandb 9.9.9 is installed.*0.31"):
        wandb_offline.read(Path("run-x.wandb"))


def test_the_reader_notices_damage_and_forgives_a_cut(folder: Path, tmp_path: Path) -> None:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    whole = file.read_bytes()
    cut, broken = tmp_path / "cut.wandb", tmp_path / "broken.wandb"
    cut.write_bytes(whole[: len(whole) // 2])
    assert wandb_offline.read(cut).exit_code is None
    broken.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(ValueError, match="checksum"):
        wandb_offline.read(broken)

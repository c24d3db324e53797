"""A W&B run that is gone on with, that fails, that is one of many ranks or of a sweep."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from hydra import compose
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

import wandb_offline
from conftest import MINI_DATA
from salon import checkpoint, run
from salon.callbacks import wandb_run
from salon.callbacks.wandb_run import Opening, WandbOnClock
from salon.job import NOTHING
from salon.models.autoencoder import Autoencoder
from salon.types import Batch

Mini = Callable[..., DictConfig]


@pytest.fixture
def small(hydra_conf: None, mini_root: Path, offline_wandb: Path, one_thread: None) -> Mini:
    """A run of 4 batches of 8 images, validated after each, saved after the 2nd and the last."""

    def make(*more: str) -> DictConfig:
        budget = "budget={batches: 4, validate_every: 1, checkpoint_every: 2}"
        return compose("train", [
            "model=autoencoder/tiny", *MINI_DATA, "model.network.channels=[16]", "batch_size=8",
            "gate=null", budget, f"data.root={mini_root}/data", "logger=wandb", *more,
        ])  # fmt: skip

    return make


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something when a batch of training begins."""
    whole = Autoencoder.training_step

    def plan(number: int, what: Callable[[], None]) -> None:
        def step(self: Autoencoder, batch: Batch, batch_idx: int) -> Any:
            if self.batches_seen == number:
                what()
            return whole(self, batch, batch_idx)

        monkeypatch.setattr(Autoencoder, "training_step", step)

    return plan


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="salon")

    def told() -> list[str]:
        return [
            r.getMessage()
            for r in caplog.records
            if r.levelno >= logging.WARNING and r.name.startswith("salon")
        ]

    return told


def opened(
    folder: Path, job_type: str = "train", *, resumes: bool = False, **more: Any
) -> WandbOnClock:
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "project": "p", "entity": None, "group": None, "name": None, "tags": (), "notes": None,
        "mode": "offline", "artifacts": "references", "settings": {}, "job": NOTHING, **more,
    }  # fmt: skip
    opening = Opening(folder, job_type, {}, resumes=resumes, strict=False)
    return wandb_run.wandb_logger(**given, opening=opening)


def seen(told: wandb_offline.OfflineRun) -> list[int]:
    return [x for x, _ in told.series("val/loss")]


def rows(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["images_seen"]) for row in csv.DictReader(file)]


# -- going on --------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_as_the_same_and_a_new_one_is_another(
    small: Mini, tmp_path: Path, at_batch: Callable[..., None]
) -> None:
    def stop() -> None:
        raise RuntimeError("stop")

    at_batch(3, stop)
    with pytest.raises(RuntimeError, match="stop"):
        run.train(small(), tmp_path)
    at_batch(-1, stop)
    kept = (tmp_path / "wandb_id.txt").read_text()
    time.sleep(1.1)  # W&B names folders by the second
    run.train(small("resume=auto"), tmp_path)
    first, second = wandb_offline.find(tmp_path)
    assert first.run_id == second.run_id == kept == (tmp_path / "wandb_id.txt").read_text()
    assert (first.exit_code, second.exit_code) == (1, 0)
    # What was logged after the checkpoint is trained again, and stands there twice, at one place.
    assert (seen(first), seen(second)) == ([8, 16, 24], [24, 32])
    losses = [dict(told.series("val/loss"))[24] for told in (first, second)]
    assert losses[0] == pytest.approx(losses[1])
    assert rows(tmp_path) == [8, 16, 24, 32]

    time.sleep(1.1)
    run.train(small(), tmp_path)
    third = wandb_offline.find(tmp_path)[-1]
    assert third.run_id == (tmp_path / "wandb_id.txt").read_text() != kept
    assert seen(third) == [8, 16, 24, 32]


# -- what may go wrong -----------------------------------------------------------------------------


def kill_service() -> None:
    """SIGKILL to this process's wandb-core."""
    killed = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (place / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(tail.split()[1]) == os.getpid() and "wandb-core" in head:
            os.kill(int(place.name), signal.SIGKILL)
            killed.append(place)
    assert len(killed) == 1, killed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_service_costs_one_warning(
    small: Mini, tmp_path: Path, at_batch: Callable[..., None], warnings: Callable[[], list[str]]
) -> None:
    folder = tmp_path / "killed"
    at_batch(2, kill_service)
    run.train(small("callbacks.best={metric: val/loss, direction: null}"), folder)
    (told,) = warnings()
    assert "service is gone" in told
    assert "nothing is logged there" in told
    assert str(folder) in told
    assert rows(folder) == [8, 16, 24, 32]
    assert json.loads((folder / "summary.json").read_text())["batches"] == 4
    assert checkpoint.read(folder)["salon"]
    assert wandb.run is None
    # The next run of this process is not touched by it.
    at_batch(-1, kill_service)
    after = opened(tmp_path / "after")
    after.log_metrics({"x": 1, "images_seen": 1})
    after.close(failed=False)
    (found,) = wandb_offline.find(tmp_path / "after")
    assert (found.exit_code, found.series("x")) == (0, [(1, 1)])


@pytest.mark.parametrize("error", [wandb.errors.CommError("no"), OSError(28, "disk full")])
def test_what_fails_now_and_then_is_told_once_and_tried_again(
    offline_wandb: Path, tmp_path: Path, warnings: Callable[[], list[str]], error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    logger = opened(tmp_path)
    kept: list[Any] = []

    def log(row: dict[str, Any]) -> None:
        if row["x"] < 3:
            raise error
        kept.append(row["x"])

    with monkeypatch.context() as patch:
        patch.setattr(logger.experiment, "log", log)
        for x in range(5):
            logger.log_metrics({"x": x})
    logger.close(failed=False)
    assert kept == [3, 4]
    (told,) = warnings()
    assert type(error).__name__ in told
    (found,) = wandb_offline.find(tmp_path)
    assert found.exit_code == 0


def test_a_bug_is_no_failure_of_wandb(offline_wandb: Path, tmp_path: Path) -> None:
    logger = opened(tmp_path)

    def bug() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        logger.attempt("x", bug)
    logger.close(failed=True)


@pytest.fixture
def unreachable(offline_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is logged in at a server that does not answer."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    wandb.teardown()


def test_auto_without_a_network_is_offline(
    unreachable: None, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    logger = opened(tmp_path, mode="auto")
    logger.log_metrics({"x": 1})
    logger.close(failed=False)
    (told,) = warnings()
    assert "not reached (CommError" in told
    assert "offline" in told
    assert wandb_offline.find(tmp_path)[-1].series("x", "x") == [(1, 1)]


def test_online_without_a_network_is_a_message(unreachable: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)logger.mode=online: .*logger.mode=offline"):
        opened(tmp_path, mode="online")
    assert wandb.run is None
    assert not set(os.environ) & set(wandb_run.HOMES)


def test_a_wandb_that_cannot_even_begin_is_trained_without(
    offline_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
) -> None:  # fmt: skip
    def init(**_: Any) -> None:
        raise wandb.errors.WandbCoreNotAvailableError("no binary")

    monkeypatch.setattr(wandb, "init", init)
    logger = opened(tmp_path)
    logger.log_metrics({"x": 1})
    logger.experiment.config.update({})
    wandb_run.say_how_to_upload(logger)
    logger.close(failed=False)
    (told,) = warnings()
    assert "nothing is logged (WandbCoreNotAvailableError: no binary)" in told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"artifacts": "all"}, "logger.artifacts='all'; expected one of none, references"),
        ({"mode": "on"}, "logger.mode='on'; expected one of auto"),
        ({"settings": {"finish_timeot": 3}}, "finish_timeot"),
    ],
)
def test_a_mistake_is_named(
    offline_wandb: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        opened(tmp_path, **more)
    assert wandb.run is None


# -- ranks and sweeps ------------------------------------------------------------------------------


def test_other_ranks_have_no_run(
    offline_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = opened(tmp_path)
    logger.log_metrics({"x": 1})
    logger.experiment.log({"x": 1})
    wandb_run.say_how_to_upload(logger)
    logger.close(failed=False)
    assert wandb.run is None
    assert not list(tmp_path.glob("wandb*/*run*"))
    assert wandb_run.kept_id(tmp_path) is None


@pytest.fixture
def agent(offline_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a process that an agent of W&B Sweeps started."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_RUN_ID", "givenid")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("agent")
def test_an_agent_of_a_sweep_gives_the_id_and_its_stages_have_their_own(tmp_path: Path) -> None:
    for name, job_type in (("text", "stage"), ("run", "train")):
        logger = opened(tmp_path / name, job_type)
        logger.close(failed=False)
    (stage,), (trained,) = (wandb_offline.find(tmp_path / name) for name in ("text", "run"))
    assert (trained.run_id, trained.sweep_id) == ("givenid", "sweep1")
    assert wandb_run.kept_id(tmp_path / "run") == "givenid"
    assert stage.run_id != "givenid"
    assert stage.sweep_id == ""
    assert os.environ["WANDB_RUN_ID"] == "givenid"


# -- what else is logged ---------------------------------------------------------------------------


def test_the_system_is_watched_offline_too(offline_wandb: Path, tmp_path: Path) -> None:
    logger = opened(tmp_path, settings={"x_stats_sampling_interval": 0.1})
    time.sleep(1)
    logger.close(failed=False)
    (told,) = wandb_offline.find(tmp_path)
    assert len(told.stats) >= 2
    assert {"cpu", "memory_percent", "proc.memory.rssMB"} <= set(told.stats[-1])


@pytest.mark.parametrize("artifacts", ["none", "checkpoints"])
def test_what_is_uploaded_is_a_setting(small: Mini, tmp_path: Path, artifacts: str) -> None:
    more = (f"logger.artifacts={artifacts}", "callbacks.best={metric: val/loss}")
    run.train(small("budget.validate_every=2", *more), tmp_path)
    (told,) = wandb_offline.find(tmp_path)
    name = f"model-{told.run_id}"
    kept = told.config["lineage"]["checkpoint"]
    assert kept["last"]["artifact"] == kept["best"]["artifact"] == name
    assert kept["last"]["sha256"] == checkpoint.digest(tmp_path)
    if artifacts == "none":
        assert not told.artifacts
        return
    assert told.aliases[name] == [["best", "latest"], ["last", "latest"]]
    best, last = told.artifacts[name]
    for file, place in ((best, checkpoint.BEST), (last, checkpoint.LAST)):
        copy = file[place.name]
        assert copy.read_bytes() == (tmp_path / place).read_bytes()
        assert tmp_path in copy.parents
        assert copy != tmp_path / place, "which the next training may change before the upload"
    assert told.metadata[name]["images_seen"] == 32
    data = next(n for n, kind in told.types.items() if kind == "dataset")
    assert not told.artifacts[data][0], "shards are never uploaded"

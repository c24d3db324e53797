"""Names and tags from overrides, and the sync command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salon.callbacks import naming
from salon.callbacks.wandb_run import sync_command

CHOICES = {"model": "df_gan/tiny", "data": "shapes", "text": "clip/tiny", "trainer": "cpu"}


def job(*overrides: str, sweep: str | None = "sweep", **more: str | None) -> dict[str, Any]:
    return {"sweep": sweep, "choices": {**CHOICES, **more}, "overrides": list(overrides)}


def test_tags_are_the_users_the_choices_and_the_overrides_in_short() -> None:
    told = job(
        "model=df_gan/tiny", "model.optimizer.lr=0.001", "seed=3", "logger.group=x",
        "data.root=/big/disk", "stages_dir=s", "hydra.run.dir=runs/x", "+model.text.checkpoint=c",
        "data.train=data/mine", "trainer=cpu", "budget.batches=20", "resume=auto",
        experiment=None,
    )  # fmt: skip
    assert naming.tags(["mine", "model:df_gan/tiny"], told) == [
        "mine", "model:df_gan/tiny", "data:shapes", "text:clip/tiny", "lr=0.001", "batches=20",
    ]  # fmt: skip


def test_two_overrides_that_end_alike_are_told_apart() -> None:
    told = job("model.optimizer.lr=1", "model.discriminator_optimizer.lr=2", "model.drop=0")
    assert naming.short(told) == [
        "model.optimizer.lr=1", "model.discriminator_optimizer.lr=2", "drop=0",
    ]  # fmt: skip


def test_a_tag_is_no_longer_than_wandb_takes() -> None:
    told = job("model.overrides=[" + "x" * 200 + "]")
    assert max(map(len, naming.tags([], told))) == 64


def test_a_job_of_a_multirun_is_named_by_what_sets_it_apart() -> None:
    told = job("model.drop=0.1", "model=df_gan/tiny", "seed=3", "data.root=/x", "trainer=cpu")
    assert naming.name(told) == "df_gan/tiny seed=3 drop=0.1"
    long = naming.name(job("seed=7", *(f"model.option_{i}={i}" for i in range(60))))
    assert long is not None
    assert len(long) == 120
    assert long.startswith("seed=7 option_0=0 ")
    assert naming.name(job("model.drop=0.1", sweep=None)) is None
    assert naming.name(job()) is None


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["a b"], "wandb sync '{}/a b'/wandb/offline-run-*"),
        (["s/0", "s/1"], "wandb sync {}/s/*/wandb/offline-run-*"),
        (["s/x/0", "s/y/0"], "wandb sync {}/s/*/*/wandb/offline-run-*"),
        (["s/0", "t"], "wandb sync {0}/s/0/wandb/offline-run-* {0}/t/wandb/offline-run-*"),
        (["s/0", "none"], "wandb sync {0}/s/0/wandb/offline-run-*"),
        (["none"], None),
    ],
)
def test_the_sync_command_names_every_run_and_no_other(
    tmp_path: Path, folders: list[str], told: str | None
) -> None:
    for name in (f for f in folders if f != "none"):
        (tmp_path / name / "wandb" / "offline-run-20260101_000000-x").mkdir(parents=True)
    (tmp_path / "none" / "wandb" / "run-20260101_000000-x").mkdir(parents=True)
    wanted = None if told is None else told.format(tmp_path)
    assert sync_command([tmp_path / name for name in folders]) == wanted


def test_relative_and_absolute_folders_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stages_dir=stages and a run folder do."""
    monkeypatch.chdir(tmp_path)
    for name in ("stages/x", "runs/y"):
        (tmp_path / name / "wandb" / "offline-run-x").mkdir(parents=True)
    told = sync_command([Path("stages/x"), tmp_path / "runs" / "y", Path("stages/x")])
    assert told == f"wandb sync {tmp_path}/*/*/wandb/offline-run-*"


def test_a_glob_that_would_take_others_along_is_not_used(tmp_path: Path) -> None:
    for name in "012":
        (tmp_path / name / "wandb" / "offline-run-x").mkdir(parents=True)
    told = sync_command([tmp_path / "0", tmp_path / "1"])
    assert told == f"wandb sync {tmp_path}/0/wandb/offline-run-* {tmp_path}/1/wandb/offline-run-*"

"""What the jury found, to W&B where `logger=wandb` asks for it: after all files are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from salon import config, doors, job
from salon.callbacks import evaluation_log, wandb_run
from salon.callbacks.evaluation_log import Source
from salon.callbacks.wandb_run import Opening, WandbOnClock
from salon.config import TARGET, build, to_plain
from salon.jury.compare import Written
from salon.jury.hearing import Sheet
from salon.jury.record import Record

GIVEN = {"opening": None}


def asked(cfg: DictConfig) -> dict[str, Any] | None:
    """The logger's node; None where nothing is to be logged.

    Raises ValueError for a mistake in it, so that nobody waits for an evaluation to be told.
    """
    node = to_plain(cfg.logger) if cfg.get("logger") else {}
    if not node.get(TARGET):
        return None
    config.check(node, "logger", GIVEN)
    wandb_run.check(node["mode"], node["artifacts"])
    return {**node, "job": job.NOTHING}  # the evaluation's own command is in its config


def evaluation(
    cfg: DictConfig, record: Record, sheets: Mapping[str, Sheet], source: Source,
    run: Mapping[str, Any], out: Path,
) -> None:  # fmt: skip
    """`run` is the config of the run that trained the checkpoint: its group is this one's."""
    node = asked(cfg)
    if node is None:
        return
    of_run = run.get("logger") or {}
    sweep = (of_run.get("job") or {}).get("sweep")
    node["group"] = node["group"] or of_run.get("group") or sweep
    node["name"] = node["name"] or record.label
    told = evaluation_log.config_of(record, source, to_plain(cfg))

    def fill(logger: WandbOnClock) -> None:
        evaluation_log.log_evaluation(logger, record, evaluation_log.panel(sheets), source)

    print(evaluation_log.keep(_opened(node, out, "evaluate", told), fill))


def source_of(file: Path, sha256: str, run: Path, out: Path) -> Source:
    # In the run folder itself, evaluations would be taken for training, but for what is kept there.
    mixed = out.resolve() == run.resolve()
    trained = wandb_run.kept_id(run) if mixed else evaluation_log.training_run(run)
    return Source(file, sha256, trained)


def report(written: Written) -> None:
    """With the words of the command line that begin with `logger`."""
    with initialize_config_dir(str(doors.CONF), version_base="1.3"):
        node = asked(compose("evaluate", list(written.logger)))
    if node is None:
        return
    node["name"] = node["name"] or written.title
    labels = list(dict.fromkeys(record.label for record in written.records))
    told = {
        "title": written.title, "labels": labels, "protocol": dict(written.records[0].protocol),
    }  # fmt: skip
    folder = written.page.parent
    fill = partial(
        evaluation_log.log_report, records=written.records, folder=folder, title=written.title
    )
    print(evaluation_log.keep(_opened(node, folder, "report", told), fill))


def _opened(
    node: Mapping[str, Any], folder: Path, job_type: str, told: dict[str, Any]
) -> Callable[[], WandbOnClock]:
    # W&B keeps paths as they are given, and a sync may start anywhere.
    opening = Opening(folder.absolute(), job_type, told, resumes=False, strict=True)
    return partial(build, node, "logger", opening=opening)

"""A search as a W&B run of its own, beside its trials' runs: the table, the page, the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from salon.callbacks.wandb_run import WandbOnClock

FILES = ("index.html", "study.csv")


def log_search(
    logger: WandbOnClock,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    best: Mapping[str, Any],
    folder: Path,
) -> None:
    """`best` goes into the summary: a search has no clock, and one row."""
    run = logger.experiment
    run.define_metric("*", step_metric=None, overwrite=True)
    table = wandb.Table(columns=list(columns), allow_mixed_types=True)
    for row in rows:
        table.add_data(*row)
    page = wandb.Html(str(folder / FILES[0]), inject=False)
    logger.log_metrics({"tables/trials": table, "media/search": page, **best})
    artifact = wandb.Artifact(f"search-{run.id}", "search")
    for name in FILES:
        artifact.add_file(str(folder / name))
    run.log_artifact(artifact)

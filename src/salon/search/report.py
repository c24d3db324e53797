"""What is told about a study: on the terminal, in its folder, and in W&B."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from salon import files
from salon.callbacks import evaluation_log, search_log
from salon.callbacks.wandb_run import Opening
from salon.config import TARGET, build, to_plain
from salon.run import CONFIG
from salon.search import page
from salon.search.charts import note, short
from salon.search.study import Study, Trial, read

SEVERAL = 200  # columns of a terminal that does not say its width


def conclude(folder: Path) -> None:
    """At the end of a search: the report, and its W&B run where the trials have theirs."""
    study = write(folder)
    node = logger_of(study)
    if node is not None:
        print(publish(study, node))


def write(folder: Path) -> Study:
    """The table on the terminal, index.html and study.csv into the folder.

    Raises ValueError for a folder that no search has made.
    """
    study = read(folder)
    best = [(one, again(study, one)) for one in study.best()]
    files.write(folder / "study.csv", page.table_csv(study))
    files.write(folder / "index.html", page.page(study, best))
    show(study)
    for one, words in best:
        print(f"best: {note(study, one)}\n  {shlex.join(words)}")
    if not best:
        print("no trial is complete yet")
    print(f"report: {folder / 'index.html'}")
    return study


def show(study: Study) -> None:
    ways = zip(study.objectives, study.directions, strict=True)
    told = ", ".join(f"{name} ({way})" for name, way in ways)
    table = Table(title=f"{study.name}: {told}. {page.summary(study)}")
    keys = [short(key) for key in study.keys]
    for name in ("trial", *keys, *study.objectives, "state", "images seen", "seconds", "folder"):
        table.add_column(name, overflow="fold")
    best = study.best_numbers()
    for one, row in zip(study.trials, page.shown(study), strict=True):
        style = "bold" if one.number in best else "dim" if one.state != "complete" else None
        table.add_row(*row, style=style)
    console = Console()
    Console(width=console.width if console.is_terminal else SEVERAL).print(table)


def again(study: Study, one: Trial) -> list[str]:
    """The command that trains a trial again, by itself."""
    own = ("+sweep", "hydra.", "+hydra", "callbacks.prune", "budget")  # of the search, or below
    kept = [word for word in study.fixed if not word.startswith(own)]
    file = one.folder / CONFIG
    budget = OmegaConf.load(file).budget if file.is_file() else {}
    limits = [f"budget.{key}={'null' if value is None else value}" for key, value in budget.items()]
    # In the order of the trial's own overrides, where the last of two wins.
    return [
        "python", "train.py", *(f"{key}={value}" for key, value in one.params.items()),
        *kept, *limits,
    ]  # fmt: skip


def logger_of(study: Study) -> dict[str, Any] | None:
    """The logger that the trials have, as the first of them was composed; None: no W&B."""
    for one in study.trials:
        file = one.folder / CONFIG
        if file.is_file():
            cfg = OmegaConf.load(file)
            assert isinstance(cfg, DictConfig)
            node = to_plain(cfg.logger)
            return node if node.get(TARGET) else None
    return None


def publish(study: Study, node: Mapping[str, Any]) -> str:
    """What became of the W&B run; nothing that happens there is raised."""
    best = study.best()
    told = {
        "search": study.name,
        "objective": list(study.objectives),
        "direction": list(study.directions),
        "command": study.command,
        "best": [one._asdict() | {"folder": str(one.folder)} for one in best],
    }
    numbers = {"trials": len(study.trials), "complete": len(study.complete)}
    if len(study.objectives) == 1 and best:
        assert best[0].values is not None
        numbers |= {"best/trial": best[0].number, f"best/{study.objectives[0]}": best[0].values[0]}  # type: ignore[dict-item]
    fill = partial(
        search_log.log_search, columns=page.header(study), rows=page.rows(study), best=numbers,
        folder=study.folder,
    )  # fmt: skip
    named = {**node, "name": f"search {study.name}"}
    opening = Opening(study.folder.absolute(), "search", told, resumes=False, strict=True)
    return evaluation_log.keep(partial(build, named, "logger", opening=opening), fill)

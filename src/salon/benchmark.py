"""What follows a multirun that is a benchmark: every run before the jury, and one report.

`hydra.callbacks.benchmark` of conf/benchmark/*.yaml says what is judged.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from salon import after, checkpoint, doors, stages
from salon.jury import compare, evaluate
from salon.multirun import plan
from salon.run import CONFIG

log = logging.getLogger(__name__)


class Benchmark(Callback):
    """Of a multirun whose runs lie in LABEL/seed_SEED."""

    def __init__(self, *, title: str, jury: list[str]) -> None:
        self.title, self.jury = title, [str(one) for one in jury]
        self.folder, self.command = Path(), ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.command = plan.given(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        after.due.append(lambda: print(f"report: {self.conclude()}"))

    def runs(self) -> list[Path]:
        """Those that are finished, of every label and seed."""
        found = sorted(self.folder.rglob(stages.SUMMARY))
        return [path.parent for path in found if path.parent.name.startswith("seed_")]

    def conclude(self) -> Path:
        """The report's page. Raises ValueError where nothing was trained."""
        runs = self.runs()
        if not runs:
            raise ValueError(f"{self.folder} holds no finished run, so there is nothing to judge")
        tower = tower_of(runs[0])
        for place, run in enumerate(runs):
            log.info("the jury hears %s (%d of %d)", run, place + 1, len(runs))
            self.judge(run, tower, first=place == 0)
        records = compare.found_in([str(run / "jury") for run in runs])
        return compare.write(
            records, self.folder / "report", title=self.title, command=self.command
        )

    def judge(self, run: Path, tower: Path, *, first: bool) -> None:
        """Into run/jury, unless the same was done there before."""
        label = str(run.parent.relative_to(self.folder))
        given = [
            f"checkpoint={json.dumps(str(run))}", f"tower={json.dumps(str(tower))}",
            f"label={label}", f"baselines={str(first).lower()}",
            f"features={json.dumps(str(self.folder / 'features'))}", *self.jury,
        ]  # fmt: skip
        with initialize_config_dir(str(doors.CONF), version_base="1.3"):
            cfg = compose("evaluate", given)
        done = run / "jury" / "asked.json"
        asked = json.dumps([checkpoint.digest(run), OmegaConf.to_container(cfg)], sort_keys=True)
        if done.is_file() and done.read_text() == asked:
            log.info("heard before")
            return
        evaluate.evaluate(cfg)
        done.write_text(asked)


def tower_of(run: Path) -> Path:
    """The folder of the text tower that a run was told by."""
    name = checkpoint.read(run)["salon"]["stages"]["text"]
    cfg = OmegaConf.load(run / CONFIG)
    given = Path(name)
    return given if given.exists() else Path(cfg.stages_dir) / name

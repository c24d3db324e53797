"""A study read back: from optuna's storage, or from the runs of a grid."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from salon.callbacks.prune import PRUNED
from salon.stages import SUMMARY

ABOUT = "search.json"  # in the study's folder: what is searched, and how
JOB = "job.json"  # in a trial's folder: its overrides, and why it failed
METRICS = "metrics.csv"
TRIAL = "trial"
MISSING = "a search by optuna needs what is not installed ({}): pip install -e '.[sweep]'"


class Trial(NamedTuple):
    number: int
    params: dict[str, Any]
    values: tuple[float, ...] | None  # of the objectives
    state: str  # complete, pruned, failed, unfinished
    images: int | None
    seconds: float | None  # of training steps
    folder: Path
    overrides: list[str]
    error: str | None
    curve: dict[int, float]  # images seen -> the objective at a validation


class Study(NamedTuple):
    folder: Path
    name: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    command: str
    fixed: list[str]  # words of the command line that every trial shares
    trials: list[Trial]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for one in self.trials for key in one.params))

    @property
    def complete(self) -> list[Trial]:
        return [one for one in self.trials if one.state == "complete"]

    def better(self, one: Trial, other: Trial) -> bool:
        """Whether one dominates the other: nowhere worse, and somewhere better."""
        a, b = (self._signed(trial) for trial in (one, other))
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    def best(self) -> list[Trial]:
        """The complete trials that none dominates; with one objective the first of the best."""
        found = [
            one
            for one in self.complete
            if not any(self.better(other, one) for other in self.complete)
        ]
        return found[:1] if len(self.objectives) == 1 else sorted(found, key=self._signed)

    def best_numbers(self) -> set[int]:
        return {one.number for one in self.best()}

    def _signed(self, trial: Trial) -> tuple[float, ...]:
        assert trial.values is not None
        return tuple(
            -value if way == "maximize" else value
            for value, way in zip(trial.values, self.directions, strict=True)
        )


def read(folder: Path) -> Study:
    """Raises ValueError for a folder that no search has made."""
    if not (folder / ABOUT).is_file():
        raise ValueError(
            f"{str(folder)!r} is no search ({ABOUT} is not there). Give the folder of a multirun "
            "with +sweep=..., such as multirun/tpe_df_gan"
        )
    about = json.loads((folder / ABOUT).read_text())
    objectives, directions = tuple(about["objective"]), tuple(about["direction"])
    if about["storage"] is None:
        trials = _from_runs(folder, about["keys"], objectives)
    else:
        trials = [_from_optuna(folder, one) for one in load(about["storage"], about["study"])]
    return Study(
        folder, about["study"] or folder.name, objectives, directions, about["command"],
        about["overrides"], trials,
    )  # fmt: skip


def load(storage: str | None, name: str | None) -> list[Any]:
    """Optuna's trials; none where there is no such study yet.

    Raises ValueError where optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(MISSING.format(error)) from error
    file = Path((storage or "").removeprefix("sqlite:///"))
    if storage is None or (storage.startswith("sqlite:///") and not file.is_file()):
        return []
    if name not in {one.study_name for one in optuna.get_all_study_summaries(storage)}:
        return []
    return list(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))


def _from_optuna(folder: Path, one: Any) -> Trial:
    here = folder / f"trial_{one.number}"
    told = _told(here)
    state = {"COMPLETE": "complete", "FAIL": "failed"}.get(one.state.name, "unfinished")
    if one.user_attrs.get(PRUNED):
        state = "pruned"
    return Trial(
        number=one.number,
        params={key: value for key, value in one.params.items() if key != TRIAL},
        values=None if one.values is None else tuple(one.values),
        state=state,
        images=told.images or max(one.intermediate_values, default=None),
        seconds=told.seconds,
        folder=here,
        overrides=told.overrides,
        error=told.error,
        curve=dict(one.intermediate_values),
    )


def _from_runs(folder: Path, keys: Sequence[str], objectives: Sequence[str]) -> list[Trial]:
    trials = []
    jobs = [path.parent for path in folder.rglob(JOB)]
    for here in sorted(jobs, key=lambda job: _told(job).number):
        told = _told(here)
        words = dict(word.split("=", 1) for word in told.overrides)
        values = [told.metrics.get(name) for name in objectives]
        done = told.finished and told.error is None and None not in values
        trials.append(
            Trial(
                number=told.number,
                params={key: _plain(words[key]) for key in keys if key in words},
                values=tuple(value for value in values if value is not None) if done else None,
                state="complete" if done else "failed" if told.error else "unfinished",
                images=told.images,
                seconds=told.seconds,
                folder=here,
                overrides=told.overrides,
                error=told.error,
                curve=told.curves.get(objectives[0], {}),
            )
        )
    return trials


class _Told(NamedTuple):
    """What a run's folder says, as far as the run has come."""

    number: int
    overrides: list[str]
    error: str | None
    finished: bool
    images: int | None
    metrics: dict[str, float]
    curves: dict[str, dict[int, float]]

    @property
    def seconds(self) -> float | None:
        return self.metrics.get("cost/seconds")


def _told(folder: Path) -> _Told:
    job: dict[str, Any] = {"number": 0, "overrides": [], "error": None}
    if (folder / JOB).is_file():
        job |= json.loads((folder / JOB).read_text())
    images: int | None = None
    metrics: dict[str, float] = {}
    curves: dict[str, dict[int, float]] = {}
    if (folder / METRICS).is_file():
        with (folder / METRICS).open(newline="") as lines:
            for row in csv.DictReader(lines):
                images = int(row["images_seen"])
                for name, value in row.items():
                    if value:
                        curves.setdefault(name, {})[images] = float(value)
        metrics = {name: list(curve.values())[-1] for name, curve in curves.items()}
    finished = (folder / SUMMARY).is_file()
    if finished:
        summary = json.loads((folder / SUMMARY).read_text())
        images, metrics = summary["images_seen"], summary["metrics"]
    return _Told(
        job["number"], job["overrides"], job["error"], finished, images, metrics, curves
    )  # fmt: skip


def _plain(word: str) -> Any:
    try:
        return int(word)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return word

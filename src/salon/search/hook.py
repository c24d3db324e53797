"""What a multirun that is a search does beside training: `hydra.callbacks.search` of conf/sweep/.

The sweeper of hydra-optuna-sweeper adds `n_trials` whenever it is called, numbers folders from 0,
and forgives failures by the batch. `Search` and `numbered` make of that: as many trials as are
left, a folder for each number, and a share of failures over the whole study.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from salon import after, files
from salon.checks import listed
from salon.multirun import names, plan
from salon.search import report
from salon.search.study import ABOUT, JOB, TRIAL, load

log = logging.getLogger(__name__)
SETTLED = 4  # finished trials before a share of failures means something


class Search(Callback):
    """Of a multirun that is a search, by optuna or by Hydra's own sweeper."""

    def __init__(
        self, *, max_failure_rate: float, spaces: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self.max_failure_rate = max_failure_rate  # which `numbered` looks at
        self.spaces = spaces or {}  # by family: what it searches beside hydra.sweeper.params
        self.folder = Path()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweeper = config.hydra.sweeper
        with flag_override(config, ["readonly", "struct"], [False, False]):
            self._widen(config)
            if "n_trials" in sweeper:
                self._go_on(config)
        told = {
            "command": plan.given(config),
            "overrides": fixed(config),
            "keys": [one.get_key_element().lstrip("+") for one in names.swept(config)],
            "objective": listed(config.objective),
            "direction": listed(config.direction),
            "storage": sweeper.get("storage"),
            "study": sweeper.get("study_name"),
        }
        files.write(self.folder / ABOUT, json.dumps(told, indent=2))

    def _widen(self, config: DictConfig) -> None:
        """The family's own space, where the command line has not said another."""
        choice = str(config.hydra.runtime.choices.model)
        for key, values in self.spaces.get(choice.partition("/")[0], {}).items():
            if OmegaConf.select(config, str(key)) is not None:
                config.hydra.sweeper.params.setdefault(str(key), values)

    def _go_on(self, config: DictConfig) -> None:
        sweeper = config.hydra.sweeper
        trials = load(sweeper.storage, sweeper.study_name)
        if not trials:
            return
        done = sum(one.state.is_finished() for one in trials)
        sweeper.n_trials = max(0, sweeper.n_trials - done)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += len(trials)  # else what was drawn before is drawn again
        log.info("%s: %d trials are done, %d to go", self.folder, done, sweeper.n_trials)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        _note(config, None)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        failed = job_return.status.name == "FAILED"
        _note(config, job_return._return_value if failed else None)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        after.anyway.append(partial(report.conclude, self.folder))


def _note(config: DictConfig, error: BaseException | None) -> None:
    """Into the trial's folder: what a report cannot know from the study."""
    told = {
        "number": config.hydra.job.num,
        "overrides": list(config.hydra.overrides.task),
        "error": None if error is None else f"{type(error).__name__}: {error}",
    }
    files.write(Path(config.hydra.runtime.output_dir) / JOB, json.dumps(told, indent=2))


def numbered(config: DictConfig, trial: Any) -> None:
    """`hydra.sweeper.custom_search_space`: the trial's number becomes the override trial=NUMBER.

    Raises ValueError where the search makes no sense any more; that ends it.
    """
    trial.suggest_int(TRIAL, trial.number, trial.number)
    study, wanted = trial.study, config.direction
    found = [way.name.lower() for way in study.directions]
    if found != listed(wanted):
        raise ValueError(
            f"direction={wanted}, but the sweeper's (hydra.sweeper.direction), or that of the "
            f"study in {config.hydra.sweep.dir}, is {', '.join(found)}. Say direction= alone, or "
            "another folder: hydra.sweep.dir=FOLDER"
        )
    rate = config.hydra.callbacks.search.max_failure_rate
    states = [one.state for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    failed = sum(state.name == "FAIL" for state in states)
    if len(states) >= SETTLED and failed > rate * len(states):
        raise ValueError(
            f"{failed} of {len(states)} trials failed, more than "
            f"hydra.callbacks.search.max_failure_rate={rate}; why: "
            f"python -m salon.search report {config.hydra.sweep.dir}"
        )


def fixed(config: DictConfig) -> list[str]:
    """The words of the command line that every trial shares."""
    words = list(config.hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(words)
    return [w for w, one in zip(words, parsed, strict=True) if not one.is_sweep_override()]

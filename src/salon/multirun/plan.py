"""A multirun before it starts: its jobs, their folders, what is in them, and the cores they share.

`hydra.callbacks.multirun` of conf/train.yaml calls it. Hydra makes a warning of an error in a
callback, so a mistake that shall stop the command is raised as `Refused`, which is no Exception.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from salon.multirun import names
from salon.multirun.job import MISTAKES, settled

COMMAND = ["python", "train.py"]


class Job(NamedTuple):
    folder: Path
    overrides: list[str]


class Plan(NamedTuple):
    folder: Path  # of all
    jobs: list[Job] | None  # None where a sweeper decides on them as it goes
    command: str  # that goes on with them
    searchpath: list[str]  # where a job by hand needs its configs from
    started: float  # by the clock of the folder's file system


class Refused(BaseException):
    """Carries the mistake past Hydra to the door (`table.concluded`)."""

    def __init__(self, mistake: Exception) -> None:
        super().__init__(str(mistake))
        self.mistake = mistake


_plans: list[Plan] = []  # of this process's multirun; at most one


def current() -> Plan | None:
    return _plans[-1] if _plans else None


class Multirun(Callback):
    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            made = plan(config)
        except MISTAKES as mistake:
            raise Refused(mistake) from mistake
        share_cores(config, None if made.jobs is None else len(made.jobs))
        _plans.append(made)


def plan(config: DictConfig) -> Plan:
    """Raises ValueError for jobs that would train over each other or over other runs."""
    names.remember_swept(config)
    folder = Path(config.hydra.sweep.dir)
    told = list(config.hydra.overrides.hydra)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / ".started"
    mark.write_text("")
    kept = [w for w in told if not w.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    words = ["-m", *kept, *config.hydra.overrides.task, _dir("hydra.sweep.dir", folder)]
    return Plan(
        folder=folder,
        jobs=jobs(config),
        command=command(words),
        searchpath=[word for word in told if word.startswith("hydra.searchpath")],
        started=mark.stat().st_mtime,
    )  # fmt: skip


def rerun(folder: Path, overrides: Iterable[str], searchpath: Iterable[str] = ()) -> str:
    """The command that goes on with one job alone."""
    said = [word for word in overrides if _is_resume(word)]
    kept = [word for word in overrides if not _is_resume(word)]
    start = said[-1] if said and not said[-1].endswith(("=null", "=auto")) else "resume=auto"
    return command([*searchpath, *kept, _dir("hydra.run.dir", folder), start])


def _is_resume(word: str) -> bool:
    return word.partition("=")[0].lstrip("+") == "resume"


def command(words: Iterable[str]) -> str:
    """As one types it in a shell."""
    return shlex.join([*COMMAND, *words])


def given(config: DictConfig) -> str:
    """The command that this multirun was started with."""
    words = [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
    return command(["-m", *(word for word in words if not word.startswith("hydra.mode="))])


def _dir(key: str, folder: Path) -> str:
    """An override, quoted where Hydra would read the folder's name as more than a name."""
    parser = OverridesParser.create()
    for word in (f"{key}={folder}", f'{key}="{folder}"'):
        try:
            if parser.parse_override(word).value() == str(folder):
                return word
        except MISTAKES:
            continue
    escaped = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def jobs(config: DictConfig) -> list[Job] | None:
    """Every job of Hydra's own sweeper, in its order."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    words = parser.parse_overrides([*params, *config.hydra.overrides.task])
    [every] = BasicSweeper.split_arguments(words, None)
    before = HydraConfig.instance().cfg
    try:
        found = [_job(config, number, list(one)) for number, one in enumerate(every)]
    finally:
        HydraConfig.instance().cfg = before
    folder, count = Counter(job.folder for job in found).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} jobs would train in {folder}. Leave out values that are given twice, or "
            "let hydra.sweep.subdir tell the jobs apart"
        )
    return found


def _job(config: DictConfig, number: int, overrides: list[str]) -> Job:
    cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
    HydraConfig.instance().set_config(cfg)
    folder = Path(cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir)
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(task, True)
    settled(task, overrides, folder)
    return Job(folder, overrides)


def share_cores(config: DictConfig, count: int | None) -> None:
    """Jobs at a time on this machine get their share of its cores, unless OMP_NUM_THREADS is set.

    Threads of several jobs that wait for one core wait for each other at every sum.
    """
    launcher, sweeper = config.hydra.launcher, config.hydra.sweeper
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if launcher._target_.endswith(".JoblibLauncher"):
        at_once = launcher.n_jobs if launcher.n_jobs > 0 else max(1, cores + 1 + launcher.n_jobs)
    elif launcher._target_.endswith("submitit_launcher.LocalLauncher"):  # all of a batch
        at_once = sweeper.get("max_batch_size") or sweeper.get("n_jobs") or count or 1
    else:  # one at a time, or on machines that share their cores out themselves
        return
    at_once = min(at_once, count or at_once)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // at_once)))

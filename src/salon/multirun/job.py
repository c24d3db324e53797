"""One training: alone, as `run` has it, or as a job of a multirun, which leaves its status behind.

In a multirun `resume` means `auto` where nobody said otherwise, so that the same command, told the
folder of all (`hydra.sweep.dir=FOLDER`), skips what is finished and goes on with the rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import salon.multirun.names  # noqa: F401  (the resolvers, for jobs in other processes)
from salon import checkpoint, checks, ranks, run, stages
from salon.config import to_plain
from salon.multirun import gpus, status

log = logging.getLogger(__name__)
MISTAKES = (ValueError, OSError, HydraException, OmegaConfBaseException)  # of users; see `doors`


class JobFailed(ValueError):
    """What a sweeper is told of a failed job: a line, which passes from process to process."""


def train(cfg: DictConfig) -> run.Value:
    """What train.py does in the folder that Hydra names; returns the objective's value."""
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN:
        basic = hydra.sweeper._target_.endswith(".BasicSweeper")
        return _in_multirun(cfg, folder, overrides, tell=not basic)
    first = ranks.declared()[0] == 0  # of processes that have not met yet
    if first:
        checks.writable(folder)
    with alone(folder) if first else contextlib.nullcontext():
        if status.read(folder) is not None:  # of a multirun, by hand
            with told(folder, overrides) as said:
                said["objective"] = run.train(run.resumed(cfg, overrides), folder)
            return said["objective"]
        with interruptible():
            return run.train(run.resumed(cfg, overrides), folder)


def _in_multirun(cfg: DictConfig, folder: Path, overrides: list[str], *, tell: bool) -> run.Value:
    """`tell`: whether the sweeper learns of a failure.

    Hydra's own would start no further batch, and has no use for it: `table` reads the status.
    """
    said: dict[str, Any] = {}
    try:
        with alone(folder), told(folder, overrides) as said, logged(folder):
            use_cores()
            gpus.take_one(HydraConfig.get().launcher, cfg.trainer)
            cfg = settled(cfg, overrides, folder, trainable=True)
            said["found"] = run.finished(cfg, folder)
            said["objective"] = run.train(cfg, folder)
    except Exception as error:
        log.error("%s: %s", folder, line(error))
        if tell:
            raise JobFailed(line(error)) from error
    return said.get("objective")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises ValueError where another process trains in `folder`."""
    try:
        with FileLock(folder / ".job.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"{folder} is being trained in by another process; wait for its end, or train into "
            "another folder: hydra.run.dir=FOLDER, of a multirun hydra.sweep.dir=FOLDER"
        ) from None


@contextlib.contextmanager
def told(folder: Path, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """The status file, from "running" to its end; yields a dict for what is to be told."""
    begun = status.begin(folder, overrides)
    said: dict[str, Any] = {}
    try:
        with interruptible():
            yield said
    except Exception as error:
        (folder / status.ERROR).write_text(traceback.format_exc())
        mistake = isinstance(error, MISTAKES)
        status.end(folder, begun, status.FAILED, error=line(error), mistake=mistake)
        raise
    except BaseException:
        status.end(folder, begun, status.INTERRUPTED)
        raise
    outcome = status.FOUND if said.pop("found", False) else status.FINISHED
    status.end(folder, begun, outcome, objective=said.get("objective"))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is: Lightning's trainer makes it an exit with code 1, as of an error."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


@contextlib.contextmanager
def logged(folder: Path) -> Iterator[None]:
    """What is logged goes to the job's own file too: those of jobs at a time mingle on a screen."""
    handler = logging.FileHandler(folder / status.LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def use_cores() -> None:
    """As many threads as SLURM gave cores, which torch may not see, unless somebody said."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if cores.isdigit() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(cores))


# -- what is in a job's folder already -------------------------------------------------------------


def settled(
    cfg: DictConfig, overrides: list[str], folder: Path, *, trainable: bool = False
) -> DictConfig:
    """A job's config, with what `resume` means for this folder.

    Raises ValueError where the folder holds another run than this one. With `trainable`, clears a
    folder whose job is to be trained anew.
    """
    started = any((folder / name).is_file() for name in (checkpoint.LAST, stages.SUMMARY))
    asked = cfg.resume is not None or _says_resume(overrides)
    if asked and cfg.resume is None:  # resume=null: anew
        if trainable:
            for name in (stages.SUMMARY, checkpoint.LAST):
                (folder / name).unlink(missing_ok=True)
        return cfg
    cfg = run.resumed(cfg, overrides)  # resume=FOLDER: where this job starts, but only once
    own = cfg.resume in (None, "auto")
    if own or started:
        with open_dict(cfg):
            cfg.resume = "auto"
    if started:
        _check_same(cfg, folder, extend=asked and own)
    return cfg


def _says_resume(overrides: list[str]) -> bool:
    return any(word.partition("=")[0].lstrip("+") == "resume" for word in overrides)


def _check_same(cfg: DictConfig, folder: Path, *, extend: bool) -> None:
    """`extend`: the user asked to go on, so what may change on the way may; it is said."""
    before, now = _decisive(OmegaConf.load(folder / run.CONFIG)), _decisive(cfg)
    changed = {
        key: f"{key}={json.dumps(now.get(key))} in place of {json.dumps(before.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    }
    if not changed:
        return
    less = [
        key for key in changed
        if key.removeprefix("budget.") in checks.LIMITS and None not in (before[key], now[key])
        and now[key] < before[key]
    ]  # fmt: skip
    if extend and not less and all(key.startswith(run.MAY_CHANGE) for key in changed):
        log.warning("%s goes on with %s", folder, ", ".join(changed.values()))
        return
    told = list(changed.values())
    more = f" and {len(told) - 3} more" * (len(told) > 3)
    go_on = "" if extend or less else ", or go on with what may change on the way: resume=auto"
    raise ValueError(
        f"{folder} holds another run, and this one would have {', '.join(told[:3])}{more}. Train "
        f"into another folder: hydra.sweep.dir=FOLDER, or train it anew: resume=null{go_on}"
    )


def _decisive(config: Any) -> dict[str, Any]:
    """The values, by dotted keys, of what decides a run's numbers."""
    found: dict[str, Any] = {}

    def walk(key: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for name, child in node.items():
                walk(f"{key}.{name}", child)
        else:
            found[key] = node

    for key, node in to_plain(config).items():
        if key in run.DECISIVE:
            walk(key, node)
    return found


def line(error: BaseException) -> str:
    """An error in one line; a bug with the name of its class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MISTAKES) and text else f"{type(error).__name__}: {text}"

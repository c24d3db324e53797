"""A run as W&B sees it: opened once and gone on with, on one clock, and never in training's way.

Everything that W&B gets lies in the run folder too, so that a failure of W&B costs a warning.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from salon import files, pictures, versions
from salon.callbacks import naming
from salon.callbacks.loggers import Clock

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
ARTIFACTS = ("none", "references", "checkpoints")
TRAINED = ("train", "stage")  # the job types of runs that can be gone on with
ID = "wandb_id.txt"  # in a run folder
# Where wandb keeps what it has not uploaded yet: with the run, so that a folder can be moved whole.
HOMES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
GONE = ("MailboxClosedError", "HandleAbandonedError", "WandbServiceConnectionError")
# What an agent of W&B Sweeps sets for the run that it asks for; a stage on the way is another run.
AGENT = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")


class Opening(NamedTuple):
    """What is known of a run before W&B is asked."""

    folder: Path
    job_type: str  # train, stage, evaluate, report or search
    config: Mapping[str, Any]
    resumes: bool  # it goes on with the W&B run of its folder
    strict: bool  # errors of W&B are raised: the run is nothing but what is logged


class Nothing:
    """In place of a W&B run that could not be opened."""

    offline = disabled = True
    id = None

    def __getattr__(self, _: str) -> Nothing:
        return self

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        return self


class WandbOnClock(WandbLogger):
    """`images_seen` is the x-axis of everything.

    Errors of W&B and of the system, as a full disk or a service that was killed, are told once and
    then forgotten; any other is a bug, and raised.
    """

    clock: Clock | None = None
    opening: Opening
    artifacts = "none"
    lost = False  # for good: nothing more is tried

    _told: frozenset[str] = frozenset()
    _apart = False  # from the sweep of its agent

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        del step  # of Lightning's clock; a step also fixes rows, and wandb drops what comes late
        row = {**metrics, **(self.clock() if self.clock else {})}
        self.attempt("a row of numbers or pictures", lambda: self.experiment.log(row))

    @rank_zero_only
    def attempt(self, what: str, call: Callable[[], Any]) -> None:
        """Whatever is asked of W&B."""
        if self.lost:
            return
        try:
            call()
        except Exception as error:
            if self.opening.strict or not _of_wandb(error):
                raise
            self._forget(what, error)

    def _forget(self, what: str, error: Exception) -> None:
        kept = f"Training goes on; {self.opening.folder} has everything else"
        if _for_good(error):
            self.lost = True
            try:
                seen = self.clock()["images_seen"] if self.clock else 0
            except RuntimeError:  # training has not begun
                seen = 0
            log.warning(
                "W&B: its service is gone (%s). From images_seen=%s on nothing is logged there, "
                "and the last rows before may be lost. %s", _spelled(error), seen, kept,
            )  # fmt: skip
        elif what not in self._told:
            self._told |= {what}
            log.warning(
                "W&B: %s is lost (%s), and more may be, which is not told again. %s",
                what, _spelled(error), kept,
            )  # fmt: skip

    def close(self, *, failed: bool) -> None:
        """Always to be called: jobs of one multirun share a process, and would share a run."""
        code = 1 if failed else 0
        try:
            self.attempt("the end of the run", lambda: self.experiment.finish(exit_code=code))
        finally:
            if self.lost or self._apart:
                _forget_service()
            _leave(self.opening.folder)


def _of_wandb(error: Exception) -> bool:
    """Its service raises several kinds that are no `wandb.Error`, and those of sockets."""
    kinds = type(error).__mro__
    return isinstance(error, OSError) or any(k.__module__.split(".")[0] == "wandb" for k in kinds)


def _for_good(error: Exception) -> bool:
    """Whether the service is gone, as a socket tells or its client does."""
    return isinstance(error, ConnectionError) or type(error).__name__ in GONE


def _spelled(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _forget_service() -> None:
    """The next run of this process starts another one."""
    with contextlib.suppress(Exception, SystemExit):  # it exits with the code of a killed service
        wandb.teardown()
    wandb.run = None


# -- opening ---------------------------------------------------------------------------------------


def wandb_logger(
    *,
    project: str,
    entity: str | None,
    group: str | None,
    name: str | None,
    tags: Sequence[str],
    notes: str | None,
    mode: str,  # auto (online where the user is logged in), online, offline or disabled
    artifacts: str,  # none, references or checkpoints
    settings: Mapping[str, Any],  # of wandb's own
    job: Mapping[str, Any],  # sweep, choices, overrides: salon.job
    opening: Opening,
) -> WandbOnClock:
    """A W&B run in the folder; offline needs no account. On ranks but the first, one of nothing.

    Raises ValueError for a setting that there is not, and for `online` where that fails.
    """
    check(mode, artifacts)
    logger = WandbOnClock(save_dir=str(opening.folder))
    logger.opening, logger.artifacts = opening, artifacts
    if _rank() > 0:
        return logger  # whose experiment Lightning makes one of nothing
    own_name = opening.folder.name if opening.job_type == "stage" else naming.name(job)
    asked = {
        "project": project,
        "entity": entity,
        "group": group or job["sweep"],
        "name": name or own_name,
        "tags": naming.tags(tags, job),
        "notes": notes,
        "job_type": opening.job_type,
        "config": {**opening.config, "choices": job["choices"], "code": versions.versions()},
        "dir": str(opening.folder),
        "settings": wandb.Settings(
            **{"silent": True, "console": "off", "finish_timeout_raises": True, **settings}
        ),
    }
    # Before anything of wandb is asked: its service reads them when it starts.
    for home in HOMES:
        os.environ.setdefault(home, str(opening.folder / "wandb" / home.split("_")[1].lower()))
    try:
        logger._experiment = _opened(asked, mode, logger)
    except BaseException:
        _leave(opening.folder)
        raise
    return logger


def _opened(asked: dict[str, Any], mode: str, logger: WandbOnClock) -> Any:
    for chosen in _modes(mode):
        try:
            return _begun(asked, chosen, logger)
        except Exception as error:
            if not _of_wandb(error):
                raise
            if chosen == "online" and mode == "auto":
                log.warning("W&B: not reached (%s); this run is kept offline", _spelled(error))
            elif chosen == "online":
                raise ValueError(
                    f"logger.mode=online: W&B cannot be used ({error}). `wandb login` mends a key; "
                    "without a network say logger.mode=offline, and upload later"
                ) from error
            elif logger.opening.strict:
                raise
            else:
                kept = "Training goes on; the run folder has everything"
                log.warning("W&B: nothing is logged (%s). %s", _spelled(error), kept)
    logger.lost = True
    return Nothing()


def _modes(mode: str) -> list[str]:
    """What is tried, in order."""
    if mode != "auto":
        return [mode]
    chosen = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    return [chosen, "offline"] if chosen == "online" else [chosen]


def _begun(asked: Mapping[str, Any], mode: str, logger: WandbOnClock) -> Any:
    opening = logger.opening
    with _apart_from_agent(opening) as logger._apart:
        # An agent of W&B Sweeps gives the id itself.
        own = opening.resumes and (logger._apart or not os.environ.get("WANDB_RUN_ID"))
        run = wandb.init(
            **asked, mode=mode,  # type: ignore[arg-type]
            id=kept_id(opening.folder) if own else None,
            resume="allow" if opening.resumes else None,
        )  # fmt: skip
    run.define_metric("images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen")
    if opening.job_type in TRAINED and not run.disabled and kept_id(opening.folder) != run.id:
        files.write(opening.folder / ID, run.id)
    return run


@contextlib.contextmanager
def _apart_from_agent(opening: Opening) -> Iterator[bool]:
    """A stage that a run of a sweep trains on its way is not that run."""
    hidden = {key: os.environ[key] for key in AGENT if key in os.environ}
    if not hidden or opening.job_type != "stage":
        yield False
        return
    wandb.teardown()  # it has read them
    for key in hidden:
        del os.environ[key]
    try:
        yield True
    finally:
        os.environ.update(hidden)


def kept_id(folder: Path) -> str | None:
    """W&B's id of the run that trained in a folder."""
    try:
        return (folder / ID).read_text().strip() or None
    except OSError:
        return None


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))  # as Lightning has found it out


def check(mode: str, artifacts: str) -> None:
    if mode not in MODES:
        raise ValueError(f"logger.mode={mode!r}; expected one of {', '.join(MODES)}")
    if artifacts not in ARTIFACTS:
        raise ValueError(f"logger.artifacts={artifacts!r}; expected one of {', '.join(ARTIFACTS)}")


def _leave(folder: Path) -> None:
    """The next run of this process keeps its files in its own folder."""
    for name in HOMES:
        if folder in Path(os.environ.get(name, "")).parents:
            del os.environ[name]


def logged_in() -> bool:
    """Whether wandb has a key: in its environment variable, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    settings = wandb.setup().settings
    return bool(settings.api_key) or _netrc(str(urlparse(settings.base_url).hostname))


def _netrc(host: str) -> bool:
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(file).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None


# -- uploading later -------------------------------------------------------------------------------


def say_how_to_upload(logger: WandbOnClock, stages: Iterable[Path] = ()) -> None:
    """Where the run is offline. `stages` are the checkpoints that it stands on: theirs as well."""
    run, opening = logger.experiment, logger.opening
    if _rank() > 0 or opening.job_type != "train" or run.disabled or not run.offline:
        return
    why = "" if logged_in() else " (nobody is logged in)"
    folders = [*(path.parent.parent for path in stages), opening.folder]
    log.info("W&B: offline%s; upload later: %s", why, sync_command(folders))


def sync_command(folders: Sequence[Path]) -> str | None:
    """What uploads the offline runs of these run folders; None where there is none."""
    every = dict.fromkeys(folder.absolute() for folder in folders)
    found = [folder for folder in every if any(folder.glob("wandb/offline-run-*"))]
    if not found:
        return None
    common = Path(os.path.commonpath(found)) if len(found) > 1 else found[0]
    depths = {len(folder.relative_to(common).parts) for folder in found}
    if len(depths) == 1:
        inside = "*/" * depths.pop() + "wandb/offline-run-*"
        if {run.parents[1] for run in common.glob(inside)} == set(found):
            return f"wandb sync {shlex.quote(str(common))}/{inside}"
    places = " ".join(f"{shlex.quote(str(folder))}/wandb/offline-run-*" for folder in found)
    return f"wandb sync {places}"


# -- pictures --------------------------------------------------------------------------------------


def log_pictures(
    trainer: Trainer,
    key: str,
    images: Tensor,
    captions: Sequence[str],
    seeds: Sequence[int],
    images_seen: int,
) -> None:
    """To W&B: as media with a slider over time, and as a table to search by prompt."""
    drawn = pictures.to_pil(images)

    def told(logger: WandbOnClock) -> None:
        media = [
            wandb.Image(picture, caption=f"{caption} (seed {seed})")
            for picture, caption, seed in zip(drawn, captions, seeds, strict=True)
        ]
        table = wandb.Table(columns=["images_seen", "prompt", "seed", "image"])
        for picture, caption, seed in zip(drawn, captions, seeds, strict=True):
            table.add_data(images_seen, caption, seed, wandb.Image(picture))
        logger.log_metrics({f"media/{key}": media, f"tables/{key}": table})

    for logger in trainer.loggers:
        if isinstance(logger, WandbOnClock):
            # Making a picture writes a file, which may fail as well.
            logger.attempt("a panel of pictures", lambda logger=logger: told(logger))  # type: ignore[misc]

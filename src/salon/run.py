"""The composition root: cfg -> data, stages, model, callbacks, trainer -> a folder and a number.

A run folder holds `config.yaml`, `checkpoints/last.ckpt`, `metrics.csv`, `samples/`, `summary.json`
and the W&B run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from salon import checkpoint, checks, faults, files, parallel, precompute, ranks, stages
from salon.callbacks import artifacts, wandb_run
from salon.callbacks.budget import Budget
from salon.callbacks.cost import Cost
from salon.callbacks.loggers import MetricsCsv, Rewind
from salon.callbacks.save import SaveLast
from salon.callbacks.wandb_run import WandbOnClock
from salon.config import MODEL_ROOMS, TARGET, build, to_plain
from salon.models.base import NEVER, Trainee, chance

log = logging.getLogger(__name__)
CONFIG = "config.yaml"
RANKS = Path("ranks") / "config.yaml"  # what the processes of a run are told, beside their logs
Value = float | tuple[float, ...] | None  # of the objective, or of several


def train(cfg: DictConfig, folder: Path) -> Value:
    """Train what `cfg` describes, with its stages, into `folder`; returns the objective's value.

    Raises ValueError for what a user can mend; the message says how.
    """
    checks.check(cfg)
    if finished(cfg, folder):
        log.info("%s is finished; nothing is left to train", folder)
        return objective(cfg, summary_of(folder))
    wanted, there = parallel.ranks(cfg.trainer), ranks.declared()[1]
    if wanted == there:
        with ranks.together(parallel.backend(cfg.trainer)):
            return _train(cfg, folder)
    if there > 1:
        raise ValueError(
            f"{there} processes were started, and trainer.devices x trainer.num_nodes is {wanted}; "
            "one process for each device, or one alone, which starts the others"
        )
    return launch(cfg, folder, wanted)


def launch(cfg: DictConfig, folder: Path, number: int) -> Value:
    """The same by several processes of this machine, which have to find all stages trained.

    What they are told is this run's config and not the command line: in a multirun that would be
    the whole multirun again.
    """
    if cfg.trainer.get("num_nodes", 1) > 1:
        raise ValueError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: start this command on every node, once "
            "for each device, with srun or torchrun (docs/scale.md)"
        )
    checks.writable(folder)
    data = build(cfg.data, "data")
    data.prepare_data()
    if find_resume(cfg, folder) is None:
        ready = stages.parts(cfg, data.identity, train)
        # What the model refuses is better said once, and here.
        trainer_options(cfg, make_model(cfg, ready, data.identity))
    (folder / RANKS).parent.mkdir(exist_ok=True)
    OmegaConf.save(cfg, folder / RANKS, resolve=True)
    log.info("%d processes train in %s", number, folder)
    ranks.launch(ranks.module("salon.rank", str(folder)), number, (folder / RANKS).parent)
    return objective(cfg, summary_of(folder))


def _train(cfg: DictConfig, folder: Path) -> Value:
    if ranks.first():
        checks.writable(folder)
    data = build(cfg.data, "data")
    data.prepare_data()
    resume = ranks.agreed(find_resume(cfg, folder))
    if resume is None:
        if ranks.first():  # of what was trained here before
            (folder / checkpoint.BEST).unlink(missing_ok=True)
        model = make_model(cfg, stages.parts(cfg, data.identity, train), data.identity)
    else:
        model = remake_model(cfg, resume, data.identity)
    checks.check_shapes(data, model)
    if data.precomputed:
        data.use_precomputed(precompute.identities(model))
    if ranks.first():
        OmegaConf.save(cfg, folder / CONFIG, resolve=True)
    callbacks, save = make_callbacks(cfg, folder)
    used = stages.checkpoints(model.recipe["stages"], Path(cfg.stages_dir))
    loggers = make_loggers(cfg, folder, resumes=resume is not None)
    failed = True
    # Lightning's own lines about devices and products; its warnings still come through.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        artifacts.begin(loggers, data, used)
        trainer = Trainer(
            **trainer_options(cfg, model),
            callbacks=[*callbacks, save],
            logger=loggers,
            default_root_dir=folder,
            # One epoch is the budget, whatever the number of optimisers; the stream has no end.
            max_epochs=1,
            max_steps=-1,
            limit_train_batches=batches_of(cfg),
            val_check_interval=min(cfg.budget.validate_every, batches_of(cfg)),
            check_val_every_n_epoch=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
            use_distributed_sampler=False,
        )
        for logger in loggers:
            logger.clock = lambda: {"images_seen": model.images_seen, "batches": model.batches_seen}  # type: ignore[attr-defined]
        with expected_warnings(), faults.explained(cfg, folder, save.go_on), save.ending():
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
            if model.validated_at != model.batches_seen:
                trainer.validate(model, datamodule=data, verbose=False)
        summary = conclude(cfg, folder, model, data, trainer, loggers)
        artifacts.end(
            loggers, [*callbacks, save], {k: summary[k] for k in ("images_seen", "metrics")}
        )
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, WandbOnClock):
                logger.close(failed=failed)
                wandb_run.say_how_to_upload(logger, used.values())
    return objective(cfg, summary)


# -- the parts, in the order in which `train` asks for them ----------------------------------------


# What decides the numbers that a run ends with.
DECISIVE = ("model", "data", "batch_size", "budget", "seed", "callbacks", "metrics")
SAVE_BEST = "salon.callbacks.best.SaveBest"


def make_model(cfg: DictConfig, ready: dict[str, stages.Part], identity: str) -> Trainee:
    """The model with its stages in place, its weights from the seed alone."""
    torch.manual_seed(chance(cfg.seed, 0))
    given = {key: part.module for key, part in ready.items()}
    model: Trainee = build(cfg.model, "model", **given)
    model.seed = cfg.seed
    model.recipe = checkpoint.recipe(
        stages.resolved(cfg.model, ready),
        {**to_plain(cfg), "model": None, "text": None},
        stages.names(cfg, identity),
    )
    return model


def remake_model(cfg: DictConfig, file: Path, identity: str) -> Trainee:
    """The model that a checkpoint goes on with, its stages' parts out of the checkpoint itself.

    Raises ValueError where the checkpoint is of another model than `cfg` describes.
    """
    contents = checkpoint.read(file)
    recipe = contents["salon"]
    staged = set(stages.nodes(cfg))
    before = {key: value for key, value in recipe["model"].items() if key not in staged}
    now = {key: value for key, value in to_plain(cfg.model).items() if key not in staged}
    wanted = {**now, **stages.names(cfg, identity)}
    for key, value in {**before, **recipe["stages"]}.items():
        if wanted.get(key) != value:
            raise ValueError(
                f"resume: {file} is of a run with another model.{key} ({value}, and not "
                f"{wanted.get(key)}). Train into another folder: hydra.run.dir=FOLDER"
            )
    model: Trainee = build(recipe["model"], "model", rooms=MODEL_ROOMS)
    # The Trainer loads them too, and later than what asks which networks the model has.
    checkpoint.load_weights(model, contents["state_dict"], str(file))
    model.seed, model.recipe = cfg.seed, recipe
    return model


def make_callbacks(cfg: DictConfig, folder: Path) -> tuple[list[Callback], SaveLast]:
    """And the one that stands last, so that what the others have to save is up to date."""
    go_on = f"python train.py resume={folder}"
    if cfg.job_type == "stage":
        go_on = "the same command again"
    places: dict[str, dict[str, Any]] = {
        "guard": {"folder": folder / "diverged", "go_on": go_on},
        "samples": {"folder": folder / "samples"},
        "drops": {"folder": folder},
        "quality": {"distance": build(cfg.metrics, "metrics")},
    }
    made = [
        build(node, f"callbacks.{name}", **places.get(str(name), {}))
        for name, node in cfg.callbacks.items()
        if node is not None and name != "best"
    ]
    seconds, flops = cfg.budget.get("seconds"), cfg.budget.get("flops")
    if seconds is not None or flops is not None:
        costs = [callback for callback in made if isinstance(callback, Cost)]
        if not costs:
            raise ValueError(
                "budget.seconds and budget.flops are counted by callbacks.cost, which is null; "
                "leave callbacks.cost as it is"
            )
        made.append(Budget(costs[0], seconds=seconds, flops=flops))
    if (node := cfg.callbacks.get("best")) is not None:
        place = {"path": folder / checkpoint.BEST, "objective": cfg.objective}
        wanted = {TARGET: SAVE_BEST, "metric": None, "direction": None, **to_plain(node)}
        made.append(build(wanted, "callbacks.best", **place))
    save = SaveLast(path=folder / checkpoint.LAST, every=cfg.budget.checkpoint_every, go_on=go_on)
    return [Rewind(), *made], save


def trainer_options(cfg: DictConfig, model: Trainee) -> dict[str, Any]:
    """The Trainer's, after the model is made ready for ours."""
    options = model.own_options(to_plain(cfg.trainer))
    stage = cfg.job_type == "stage"
    parallel.make_ready(model, options, stage=stage)
    given = {key: value for key, value in options.items() if key not in parallel.OWN}
    return {
        **given,
        "devices": parallel.devices(options),
        "strategy": parallel.strategy(options, model, stage=stage),
    }


def batches_of(cfg: DictConfig) -> int:
    """At which batch the budget ends, as far as batches and images say."""
    batches, images = cfg.budget.batches, cfg.budget.get("images")
    a_batch = cfg.batch_size * parallel.ranks(cfg.trainer)
    by_images = NEVER if images is None else -(-images // a_batch)
    return min(NEVER if batches is None else batches, by_images)


def make_loggers(cfg: DictConfig, folder: Path, *, resumes: bool = False) -> list[Logger]:
    loggers: list[Logger] = [MetricsCsv(folder=folder)]
    if cfg.logger.get(TARGET) and ranks.first():
        # W&B keeps paths as they are given, and a sync may start anywhere.
        place = folder.absolute()
        opening = wandb_run.Opening(place, cfg.job_type, to_plain(cfg), resumes, strict=False)
        logger: WandbOnClock = build(cfg.logger, "logger", opening=opening)
        wandb_run.say_how_to_upload(logger)
        loggers.append(logger)
    return loggers


def finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether `resume=auto` meets this very run, at its end."""
    if cfg.resume != "auto" or not (folder / stages.SUMMARY).is_file():
        return False
    before, now = OmegaConf.load(folder / CONFIG), to_plain(cfg)
    assert isinstance(before, DictConfig)
    return all(to_plain(before).get(key) == now[key] for key in DECISIVE)


def find_resume(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from: of the run folder `resume`, or with `auto` of this folder."""
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        last = folder / checkpoint.LAST
        return last if last.is_file() else None
    return checkpoint.find(cfg.resume)


@contextlib.contextmanager
def expected_warnings() -> Iterator[None]:
    """Without the warnings that are answered here, each for a reason; all others are shown."""
    with warnings.catch_warnings():
        # The stream starts at the batch that the checkpoint names (ShardData.load_state_dict).
        warnings.filterwarnings("ignore", ".*not resumable.*")
        # Small pictures decode faster than a worker hands them over (conf/data/shapes.yaml).
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning reads torch's own tree type by a name that torch has renamed.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        # A fixed split is read by at most one worker (FixedSplit).
        warnings.filterwarnings("ignore", ".*`__len__` defined.*")
        # Frozen parts stay in eval mode, and are meant to (Trainee.keep_frozen).
        warnings.filterwarnings("ignore", ".*module\\(s\\) in eval mode.*")
        # A run shorter than the logging interval still logs at its validations.
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
        # One device out of several is a choice (trainer.devices).
        warnings.filterwarnings("ignore", ".*GPU available but not used.*")
        yield


def conclude(
    cfg: DictConfig,
    folder: Path,
    model: Trainee,
    data: Any,
    trainer: Trainer,
    loggers: list[Logger],
) -> dict[str, Any]:
    """Pass the gate, write summary.json; it marks a run as finished."""
    model.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    remarks: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "report"):
            metrics |= callback.report(trainer, model)
        if hasattr(callback, "remarks"):
            remarks |= callback.remarks(trainer)
    summary: dict[str, Any] = {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "batches": model.batches_seen,
        "images_seen": model.images_seen,
        "data": data.identity,
        "metrics": metrics,
        **remarks,
    }
    summary["stages"] = stages.costs(model.recipe["stages"], Path(cfg.stages_dir))
    gate = build(cfg.gate, "gate")(module=model.eval(), data=data) if cfg.gate else None
    if gate is not None:
        log.log(logging.INFO if gate.passed else logging.WARNING, "gate %s", gate)
        summary["gate"] = {**gate._asdict(), "passed": gate.passed}
        for logger in loggers:
            logger.log_metrics({"gate": gate.value})
    for logger in loggers:
        logger.finalize("success")
    if ranks.first():
        files.write(folder / stages.SUMMARY, json.dumps(summary, indent=2))
    return summary


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / stages.SUMMARY).read_text())
    return found


def objective(cfg: DictConfig, summary: dict[str, Any]) -> Value:
    values = tuple(measured(name, summary["metrics"]) for name in checks.listed(cfg.objective))
    return values[0] if isinstance(cfg.objective, str) else values or None


def measured(name: str, metrics: dict[str, float]) -> float:
    """Raises ValueError for what no search can compare."""
    if name not in metrics:
        raise ValueError(
            f"objective={name!r} was not measured; this run measured {', '.join(sorted(metrics))}"
        )
    if not math.isfinite(metrics[name]):
        raise ValueError(
            f"objective={name!r} is {metrics[name]}: this run diverged; a smaller "
            "model.optimizer.lr may mend it"
        )
    return float(metrics[name])


# -- around a run ----------------------------------------------------------------------------------


MAY_CHANGE = ("budget.", "callbacks.", "logger.", "objective=", "trainer.")


def resumed(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """With `resume=FOLDER`: that run's own config, and this command line's changes to it."""
    if cfg.resume in (None, "auto"):
        return cfg
    file = Path(cfg.resume) / CONFIG
    if not file.is_file():
        raise ValueError(
            f"resume={cfg.resume!r}: no run folder ({CONFIG} is not there). Give the folder that "
            "the run was trained in: resume=runs/FOLDER"
        )
    before = OmegaConf.load(file)
    assert isinstance(before, DictConfig)
    changes = [o for o in overrides if not o.startswith(("resume=", "hydra"))]
    for change in changes:
        if not change.startswith(MAY_CHANGE):
            raise ValueError(
                f"resume={cfg.resume}: {change} would make it another run; leave it out. What may "
                f"change on the way: {', '.join(MAY_CHANGE)}"
            )
    changed = OmegaConf.merge(before, OmegaConf.from_dotlist(changes), {"resume": cfg.resume})
    assert isinstance(changed, DictConfig)
    return changed


def _run_dir(resume: str | None, model: str) -> str:
    if resume not in (None, "auto"):
        return str(resume)
    if ranks.declared()[1] > 1:
        raise ValueError("several processes need one folder; name it: hydra.run.dir=runs/NAME")
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    return f"runs/{now}_{model.replace('/', '-')}"


OmegaConf.register_new_resolver("salon.run_dir", _run_dir, use_cache=True, replace=True)

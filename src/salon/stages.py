"""What a model needs trained before it: found under the hash of its config, or trained now.

A node with `_stage_: NAME` in a model's config stands for a part of another model, `conf/model/
NAME.yaml`, that is trained first, in a folder of its own, as a run of its own:

    autoencoder:
      _stage_: autoencoder/tiny    the model to train
      take: network                the part of it that is used
      checkpoint: null             a checkpoint or run folder given by hand wins over the search
      overrides: []                more overrides for the stage, such as [model.beta=1e-4]

The folder's name is the hash of everything that the weights depend on: the stage's config, its
budget, the seed and the data's identity. Two jobs that need the same stage train it once: the
second waits at a lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from salon import checkpoint, job, parallel, ranks
from salon.config import STAGE, to_plain

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
# What of a run's config is the run's own, so that a stage is trained where and as the run is.
SHARED = ("data", "text", "trainer", "logger", "seed", "stages_dir", "metrics")
# Of the trainer, what changes weights; and of that, what belongs to a model and its learning rate.
# A stage keeps its own of these, so that families which clip differently share one text tower.
NUMERICS = ("precision", "gradient_clip_val", "accumulate_grad_batches")
OF_THE_MODEL = ("gradient_clip_val", "accumulate_grad_batches")


class Part(NamedTuple):
    """A prerequisite that is ready: the module, and the config that rebuilds it."""

    module: Any
    config: dict[str, Any]


TrainRun = Callable[[DictConfig, Path], Any]


def parts(cfg: DictConfig, identity: str, train: TrainRun) -> dict[str, Part]:
    """Every stage that the model's config names, by its key; trains what is missing."""
    found = {}
    for key, node in nodes(cfg).items():
        path = node.checkpoint or _ready(cfg, node, identity, train)
        found[key] = take(path, node.take)
    return found


def nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """The model's nodes that stand for stages, by their keys."""
    model = {str(key): node for key, node in cfg.model.items()}
    return {k: n for k, n in model.items() if isinstance(n, DictConfig) and STAGE in n}


def names(cfg: DictConfig, identity: str, above: tuple[str, ...] = ()) -> dict[str, str]:
    """Which stages the model stands on: the folders' names, or the checkpoints given by hand.

    `above` are the stages that stand on this one. Raises ValueError where one stands on itself.
    """
    return {
        key: str(node.checkpoint or place(cfg, node, identity, above)[1].name)
        for key, node in nodes(cfg).items()
    }


def take(path: str | Path, name: str) -> Part:
    """A named part of the model in a checkpoint; its path is the same in model and config."""
    model = checkpoint.load(path)
    module, config = model, model.recipe["model"]
    for step in name.split("."):
        module, config = getattr(module, step), config[step]
    return Part(module, config)


def place(
    cfg: DictConfig, node: DictConfig, identity: str, above: tuple[str, ...] = ()
) -> tuple[DictConfig, Path]:
    """A stage's own config, and the folder that belongs to it."""
    if node[STAGE] in above:
        chain = " -> ".join([*above, node[STAGE]])
        raise ValueError(
            f"the stage {node[STAGE]} needs itself trained first ({chain}); let one of them be "
            "another one, such as text._stage_=damsm/bilstm_tiny, which has a tower of its own"
        )
    stage = composed(cfg, node[STAGE], list(node.get("overrides") or []))
    limits = ("batches", "images", "seconds", "flops")
    budget = {k: v for k, v in to_plain(stage.budget).items() if k in limits and v is not None}
    told = {
        "model": to_plain(stage.model),
        "budget": budget["batches"] if len(budget) == 1 else budget,
        "batch_size": stage.batch_size,
        "seed": stage.seed,
        "data": [identity, stage.data.lanes, stage.data.window],
        "trainer": [stage.trainer[key] for key in NUMERICS],
    }
    if (several := parallel.ranks(stage.trainer)) > 1:
        told["ranks"] = several
    if below := names(stage, identity, (*above, node[STAGE])):  # what this stage stands on
        told["stages"] = below
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]
    return stage, Path(cfg.stages_dir) / f"{node[STAGE].replace('/', '-')}-{digest}"


def costs(names: Mapping[str, str], root: Path) -> dict[str, dict[str, Any]]:
    """What training the stages took, by folder, with the stages that they stand on.

    A stage whose folder is not there, as of a checkpoint given by hand, is None: not measured.
    """
    found: dict[str, Any] = {}
    for name in names.values():
        file = root / name / SUMMARY
        if not file.is_file():
            found[name] = None
            continue
        told = json.loads(file.read_text())
        metrics = told["metrics"]
        found[name] = {
            "seconds": metrics.get("cost/seconds"),
            "flops": metrics.get("cost/train_flops"),
            "energy_wh": metrics.get("cost/energy_wh"),
            "images": told["images_seen"],
        }
        found |= told.get("stages", {})
    return found


def checkpoints(names: Mapping[str, str], root: Path) -> dict[str, Path]:
    """The stages' checkpoints, as far as they are there."""
    found = {}
    for key, name in names.items():
        place = root / name if (root / name).exists() else Path(name)
        file = place / checkpoint.LAST if place.is_dir() else place
        if file.is_file():
            found[key] = file
    return found


def _ready(cfg: DictConfig, node: DictConfig, identity: str, train: TrainRun) -> Path:
    stage, folder = place(cfg, node, identity)
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        # One rank holds the lock for all; the others wait for what it finds.
        lock = FileLock(root / f".{folder.name}.lock") if ranks.first() else nullcontext()
        with lock:
            if ranks.agreed((folder / SUMMARY).is_file()):
                log.info("stage %s: found in %s", node[STAGE], folder)
            else:
                log.info("stage %s: trained now, in %s", node[STAGE], folder)
                train(stage, folder)
    except OSError as error:
        raise ValueError(
            f"stages_dir={str(root)!r} cannot be written ({error}); expected a folder for trained "
            "stages. Name another: stages_dir=FOLDER"
        ) from error
    return folder


def composed(cfg: DictConfig, name: str, overrides: list[str]) -> DictConfig:
    """The config of a stage's own run: its own model and budget, this run's everything else."""
    stage = compose("train", [f"model={name}", *overrides])
    OmegaConf.set_struct(stage, False)
    own = {key: stage.trainer[key] for key in OF_THE_MODEL}
    for key in SHARED:
        if key in cfg:
            stage[key] = _raw(cfg[key])
    stage.trainer.update(own)
    # Also where this run's config is resolved already, as a resumed run's is.
    stage.data.batch_size, stage.data.seed = "${batch_size}", "${seed}"
    if "buckets" in stage.data:  # what others build on sees pictures, and squares, as the jury does
        stage.data.buckets.step = None
        stage.data.precomputed = False
    stage.job_type = "stage"
    if stage.logger.get("job") is not None:  # what the logger tells of a run is told of this one
        stage.logger.job = job.of_stage(to_plain(cfg.logger.job), name, overrides)
        stage.logger.name = None
    stage.resume = "auto"
    return stage


def _raw(node: Any) -> Any:
    """A copy whose interpolations are resolved where the copy will stand."""
    if isinstance(node, DictConfig):
        return OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    return node


def resolved(model: Mapping[str, Any], ready: Mapping[str, Part]) -> dict[str, Any]:
    """The model's config with each stage's node replaced by the config of the part."""
    return {**to_plain(model), **{key: part.config for key, part in ready.items()}}

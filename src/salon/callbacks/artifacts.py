"""Where a run's weights come from and what becomes of them: shards -> stages -> run -> evaluation.

As W&B's artifacts, and always in the config as `lineage`. A checkpoint's collection is named by the
run that trained it, and a version of it by its contents, so that whoever uses a checkpoint names
the artifact that its run has logged, whether that was uploaded or only told where it lies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import wandb
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from salon.callbacks.best import SaveBest
from salon.callbacks.save import SaveLast
from salon.callbacks.wandb_run import WandbOnClock, kept_id

MANY = 1000  # shards, whose samples are then not told one by one


class Shard(Protocol):
    @property
    def url(self) -> str: ...
    @property
    def bytes(self) -> int | None: ...
    @property
    def samples(self) -> int | None: ...


class Data(Protocol):
    identity: str

    def about(self) -> Mapping[str, Sequence[Shard]]: ...


class Weights(NamedTuple):
    """A checkpoint file."""

    path: Path
    sha256: str

    @property
    def run(self) -> Path:
        """The folder that it was trained in."""
        inside = self.path.parent.name == "checkpoints"
        return self.path.parent.parent if inside else self.path.parent

    @property
    def collection(self) -> str:
        made_by = kept_id(self.run)
        return f"checkpoint-{self.sha256[:10]}" if made_by is None else f"model-{made_by}"

    def told(self) -> dict[str, Any]:
        return {
            "artifact": self.collection,
            "sha256": self.sha256,
            "path": str(self.path.absolute()),
            "run": kept_id(self.run),
        }


def weights(path: Path) -> Weights:
    with path.open("rb") as file:
        return Weights(path, hashlib.file_digest(file, "sha256").hexdigest())


# -- around a training -----------------------------------------------------------------------------


def begin(loggers: Sequence[Logger], data: Data, stages: Mapping[str, Path]) -> None:
    """What the run is made from."""
    for logger in loggers:
        if isinstance(logger, WandbOnClock):
            logger.attempt("the lineage", lambda logger=logger: _begin(logger, data, stages))  # type: ignore[misc]


def _begin(logger: WandbOnClock, data: Data, stages: Mapping[str, Path]) -> None:
    run = logger.experiment
    if run.disabled:
        return
    found = {key: weights(path) for key, path in stages.items()}
    source = dataset_name(data.identity, run.config.get("choices", {}).get("data"))
    _tell(run, {
        "data": {"artifact": source, "identity": data.identity},
        "stages": {key: one.told() for key, one in found.items()},
        "checkpoint": None,
    })  # fmt: skip
    if logger.artifacts != "none":
        use(run, dataset(source, data))
        for one in found.values():
            use(run, model(one, upload=False))


def end(loggers: Sequence[Logger], callbacks: Sequence[Callback], told: Mapping[str, Any]) -> None:
    """What the run has made: the checkpoints that `callbacks` kept. `told` is said of them."""
    for logger in loggers:
        if isinstance(logger, WandbOnClock):
            logger.attempt("a checkpoint", lambda logger=logger: _end(logger, callbacks, told))  # type: ignore[misc]


def _end(logger: WandbOnClock, callbacks: Sequence[Callback], told: Mapping[str, Any]) -> None:
    run = logger.experiment
    if run.disabled:
        return
    kept: dict[str, Weights] = {}
    # In the order of the callbacks: the last one is last, and W&B calls that one `latest`.
    for callback in callbacks:
        if not isinstance(callback, SaveBest | SaveLast) or not callback.path.is_file():
            continue
        alias = "best" if isinstance(callback, SaveBest) else "last"
        kept[alias] = one = weights(callback.path)
        if logger.artifacts == "none":
            continue
        about = dict(told)
        if isinstance(callback, SaveBest):
            about |= {"metric": callback.metric, "value": callback.value}
            about["images_seen"] = callback.images_seen
        # Offline, a copy waits for the upload: the file itself may have changed by then.
        policy = "mutable" if run.offline else "immutable"
        artifact = model(one, upload=logger.artifacts == "checkpoints", policy=policy, told=about)
        run.log_artifact(artifact, aliases=[alias])
    lineage = dict(run.config.get("lineage") or {})
    _tell(run, {**lineage, "checkpoint": {key: one.told() for key, one in kept.items()}})


def _tell(run: Any, lineage: Mapping[str, Any]) -> None:
    run.config.update({"lineage": dict(lineage)}, allow_val_change=True)


# -- artifacts -------------------------------------------------------------------------------------


def use(run: Any, artifact: wandb.Artifact) -> None:
    """As what the run was made from.

    Offline W&B refuses `use_artifact`, though its file has a place for it: what that would write is
    written, where this version of wandb can.
    """
    if not run.offline:
        run.use_artifact(artifact)
    elif hasattr(run, "_log_artifact"):
        run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def model(
    one: Weights, *, upload: bool, policy: str = "mutable", told: Mapping[str, Any] | None = None
) -> wandb.Artifact:
    """A checkpoint: itself, or a reference with its digest."""
    metadata = {"sha256": one.sha256, "training_run": kept_id(one.run), **(told or {})}
    artifact = wandb.Artifact(one.collection, "model", metadata=metadata)
    if upload:
        artifact.add_file(str(one.path), name=one.path.name, policy=policy)  # type: ignore[arg-type]
    else:
        artifact.add_reference(one.path.absolute().as_uri(), name=one.path.name)
    return artifact


def dataset_name(identity: str, choice: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{choice or 'data'}-{identity}")


def dataset(name: str, data: Data) -> wandb.Artifact:
    """The shards, by reference; none is read, and `identity` says what is in them."""
    splits = data.about()
    metadata = {
        "identity": data.identity,
        "splits": {split: _summed(shards) for split, shards in splits.items()},
    }
    artifact = wandb.Artifact(name, "dataset", metadata=metadata)
    for split, shards in splits.items():
        for number, shard in enumerate(shards):
            url = shard.url if "://" in shard.url else Path(shard.url).absolute().as_uri()
            inside = f"{split}/{number:05d}-{Path(shard.url).name}"  # two may have one name
            artifact.add_reference(url, name=inside, checksum=False)
    return artifact


def _summed(shards: Sequence[Shard]) -> dict[str, Any]:
    sizes, samples = [shard.bytes for shard in shards], [shard.samples for shard in shards]
    return {
        "shards": len(shards),
        "bytes": None if None in sizes else sum(size or 0 for size in sizes),
        "samples": None if None in samples else sum(count or 0 for count in samples),
        "samples_of_shards": samples if len(shards) <= MANY else None,
    }

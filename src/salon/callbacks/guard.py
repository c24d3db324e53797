"""Ends a run whose numbers are no longer finite, before a step is taken, and says where it begins.

Looked at are every loss and the norm of every gradient that an optimiser is about to follow;
weights themselves are looked at before they are saved (`SaveLast`). With `every` = 1 the step that
would spoil the weights is never taken, so the batch can be run again as it was, module by module.
With more, which spares a GPU the waiting, the answers stay on the device and are read every so many
batches: then the weights are spoilt, and what is told is the batch. Either way last.ckpt is of
finite weights, and since a run goes on exactly, `callbacks.guard.every=1` from there comes to the
same place.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from salon import files
from salon.callbacks.replay import Found, is_finite, replay, tensors
from salon.models.base import Trainee

ON_A_GPU = 20  # batches between two looks, where `every` is not given


class Diverged(ValueError):
    """A loss, a gradient or a weight is not finite."""


class Seen(NamedTuple):
    batch: int  # 1, 2, ...
    keys: list[str]
    bad: Tensor  # () bool


class Guard(Callback):
    """Stands first, so that no other callback takes up what is not finite."""

    def __init__(self, *, folder: Path, go_on: str, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(
                f"callbacks.guard.every={every}; expected a number of batches, at least 1, or "
                "null. To look at nothing: callbacks.guard=null"
            )
        self.folder, self.go_on, self.every = folder, go_on, every
        self._exact = True  # looks before every step
        self._batch: tuple[Any, int] = (None, 0)
        self._bad: list[Tensor] = []  # of this batch, () bool each
        self._seen: list[Seen] = []  # batches that are not looked at yet
        self._trained: list[nn.Parameter] = []
        self._replaying = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every is None:
            self.every = 1 if pl_module.device.type == "cpu" else ON_A_GPU
        self._exact = self.every == 1
        self._trained = [p for p in pl_module.parameters() if p.requires_grad]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch, self._bad = (batch, batch_idx), []

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._replaying:
            return
        bad = ~loss.detach().isfinite().all()
        if self._exact and trainer.world_size == 1:
            self._judge(trainer, pl_module, bad)
        else:  # ranks have to stop together, which they can where they step
            self._bad.append(bad)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert isinstance(pl_module, Trainee)
        # The scaler of float16 leaves out steps whose gradients overflow, which is no fault.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled:
            norm = whole(pl_module.gradient_norm(optimizer)).to(pl_module.device)
            self._bad.append(~norm.isfinite())
        if self._exact and self._bad:
            bad = torch.stack(self._bad).any()
            self._bad = []
            self._judge(trainer, pl_module, bad)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Trainee)
        self._batch = (None, 0)
        if self._exact or not self._bad:
            return
        seen = pl_module.batches_seen
        self._seen.append(Seen(seen, batch.keys, torch.stack(self._bad).any()))
        assert self.every is not None
        if seen % self.every == 0 or seen == pl_module.budget:
            self._look_back(trainer, pl_module)

    # -- judging -------------------------------------------------------------------------------

    def _judge(self, trainer: Trainer, module: LightningModule, bad: Tensor) -> None:
        """Raises Diverged before the step that would spoil the weights."""
        assert isinstance(module, Trainee)
        if not _anywhere(trainer, bad):
            return
        batch, batch_idx = self._batch
        spoilt = not_finite(module)
        self._replaying = True
        try:
            found = replay(trainer, module, batch, batch_idx, self._trained)
        finally:
            self._replaying = False
        number = module.batches_seen + 1
        file = self._keep(trainer, module, number, batch, found, spoilt)
        raise Diverged(
            f"the run diverged in batch {number}: {told(found, spoilt)}. That batch, its "
            f"captions and keys are in {file.parent}; {self._what_now(trainer, module)}"
        )

    def _look_back(self, trainer: Trainer, module: Trainee) -> None:
        """Raises Diverged where one of the batches since the last look was not finite."""
        flags = torch.stack([seen.bad for seen in self._seen])  # (B,)
        looked, self._seen = self._seen, []
        if not _anywhere(trainer, flags.any()):
            return
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags.float(), reduce_op="sum") > 0
        first = looked[int(flags.int().argmax())]
        spoilt = not_finite(module)
        file = self._write(
            trainer,
            first.batch,
            {"batch": first.batch, "weights_not_finite": spoilt, "keys": first.keys},
        )
        raise Diverged(
            f"the run diverged in batch {first.batch}, seen {self.every} batches later at most "
            f"(callbacks.guard.every); its keys are in {file.parent}. To see the module that it "
            f"begins in, go on with callbacks.guard.every=1; {self._what_now(trainer, module)}"
        )

    # -- telling -------------------------------------------------------------------------------

    def _what_now(self, trainer: Trainer, module: LightningModule) -> str:
        rates = sorted({group["lr"] for o in trainer.optimizers for group in o.param_groups})
        clip = trainer.gradient_clip_val or getattr(module, "gradient_clip", None)
        tries = [f"a lower learning rate (now {', '.join(f'{float(rate):.3g}' for rate in rates)})"]
        tries.append(
            "trainer.gradient_clip_val=1" if not clip else f"trainer.gradient_clip_val below {clip}"
        )
        if trainer.precision != "32-true":
            tries.append(f"trainer.precision=32-true (now {trainer.precision})")
        return (
            f"nothing was saved since. Try {', '.join(tries)}. From the last checkpoint, if there "
            f"is one, go on with {self.go_on}"
        )

    def _keep(
        self,
        trainer: Trainer,
        module: Trainee,
        number: int,
        batch: Any,
        found: Found,
        spoilt: list[str],
    ) -> Path:
        pictures = {
            name: {"min": str(float(part.min())), "max": str(float(part.max()))}
            for name, value in batch._asdict().items()
            for part in tensors(value)
        }
        report = {
            "batch": number,
            "images_seen": module.images_seen,
            "not_finite": {name: str(value) for name, value in found.logged.items()},
            "first_output": found.output,
            "first_gradient": found.gradient,
            "weights_not_finite": spoilt,
            "largest_weight": max(
                (float(p.detach().abs().max()) for p in self._trained), default=0
            ),
            "learning_rates": [
                float(group["lr"]) for o in trainer.optimizers for group in o.param_groups
            ],
            "precision": str(trainer.precision),
            "ranges": pictures,
            "captions": batch.captions,
            "keys": batch.keys,
        }
        file = self._write(trainer, number, report)
        with files.aside(file.with_suffix(".pt")) as partial:
            torch.save(plain(batch), partial)
        return file

    def _write(self, trainer: Trainer, number: int, report: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        file = self.folder / f"batch_{number}{rank}.json"
        report = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in report.items()
        }
        files.write(file, json.dumps(report, indent=2, ensure_ascii=False))
        return file


def told(found: Found, spoilt: list[str]) -> str:
    """In words."""
    what = ", ".join(f"{name} is {value}" for name, value in found.logged.items())
    parts = [what or "a loss or gradient is not finite"]
    if found.output:
        parts.append(f"the first output that is not finite is {found.output}'s")
    elif found.gradient:
        parts.append(f"the first gradient that is not finite is at the output of {found.gradient}")
    elif not what:
        parts.append("run once more, the batch is finite")
    if spoilt:
        more = f" and {len(spoilt) - 1} more" if spoilt[1:] else ""
        parts.append(f"the weights of {spoilt[0]}{more} are not finite")
    return "; ".join(parts)


def whole(norm: Tensor) -> Tensor:
    """(); of shards that all ranks have, and then all ranks have to ask."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def not_finite(module: LightningModule) -> list[str]:
    """Names of trained weights that are not finite."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if bool(whole(nn.utils.get_total_norm(list(trained.values()))).isfinite()):
        return []
    return [name for name, weight in trained.items() if not is_finite(weight)]


def plain(value: Any) -> Any:
    """Named tuples as dicts, so that `torch.load(..., weights_only=True)` reads them."""
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _anywhere(trainer: Trainer, bad: Tensor) -> bool:
    """On any rank; where there is one, this is all that it costs."""
    if trainer.world_size > 1:
        bad = trainer.strategy.reduce(bad.float(), reduce_op="sum")
    return bool(bad)

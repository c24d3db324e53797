"""What a run costs: images per second, seconds, operations, parameters, peak memory.

Seconds and images per second are of training steps alone; validation, sampling, metrics and
waiting for data are not in them. They go on counting when a run is resumed.

Operations are those of every network that a training batch runs: generator and discriminator,
penalties, frozen towers. They are counted over the first batches, as many as come round again
(a penalty may be due in every 16th only), and taken for all. They are told apart by the model's
parts, forward and backward (`salon.metrics.parts`): `cost/train_flops/generator` and so on, which
add up to `cost/train_flops`. So are parameters.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from salon.metrics.flops import FlopCount
from salon.metrics.parts import OTHER
from salon.models.base import TextToImage, Trainee


class Cost(Callback):
    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0  # trained in these seconds, on this rank
        self.train_flops_per_image: float | None = None  # forward, backward and frozen parts
        self.sample_flops_per_image: float | None = None
        self._counted = (0, 0, 0)  # operations, of so many images, in so many batches
        # The same operations; None: a checkpoint has them in one sum.
        self._by_part: dict[str, int] | None = {}
        self._began: float | None = None
        self._count: FlopCount | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Counting slows a batch down, so those that are counted are not timed.
        assert isinstance(pl_module, Trainee)
        if self._counted[2] < pl_module.period:
            self._count = FlopCount(pl_module.parts)
            self._count.__enter__()
        else:
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, Trainee)
        if self._count is not None:
            self._count.__exit__(None, None, None)
            flops, images, batches = self._counted
            images += len(batch.captions)
            self._counted = flops + self._count.total, images, batches + 1
            self.train_flops_per_image = self._counted[0] / images
            if self._by_part is not None:
                for part, found in self._count.by_part.items():
                    self._by_part[part] = self._by_part.get(part, 0) + found
            self._count = None
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self.images += len(batch.captions)

    def spent(self, module: Trainee) -> tuple[float, float]:
        """Seconds on this rank and operations on all, of every batch that was trained on."""
        on_this_rank = module.images_seen / module.trainer.world_size
        seconds = self.seconds / self.images * on_this_rank if self.images else 0.0
        return seconds, (self.train_flops_per_image or 0.0) * module.images_seen

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._count is not None:
            self._count.__exit__(None, None, None)
            self._count = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        if isinstance(pl_module, TextToImage) and self.sample_flops_per_image is None:
            with FlopCount() as count:
                pl_module.sample(["a picture"], [0])
            self.sample_flops_per_image = float(count.total)
        for logger in trainer.loggers:
            logger.log_metrics(self.report(trainer, pl_module))

    def report(self, trainer: Trainer, module: Trainee) -> dict[str, float]:
        told: dict[str, float] = {
            "cost/seconds": self.seconds,
            **parameters(module),
            "cost/peak_memory_mb": peak_memory(module.device) / 2**20,
        }
        if self.seconds:
            told["cost/images_per_second"] = self.images * trainer.world_size / self.seconds
        if self.train_flops_per_image is not None:
            told["cost/train_flops_per_image"] = self.train_flops_per_image
            told["cost/train_flops"] = self.spent(module)[1]
            for part, found in (self._by_part or {}).items():
                told[f"cost/train_flops/{part}"] = found / self._counted[1] * module.images_seen
        if self.sample_flops_per_image is not None:
            told["cost/sample_flops_per_image"] = self.sample_flops_per_image
        return told

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "images": self.images,
            "counted": list(self._counted),
            "by_part": self._by_part,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        flops, images, batches = state_dict.get("counted", (0, 0, 0))
        self._counted = flops, images, batches
        self._by_part = state_dict.get("by_part") if images else {}
        if images:
            self.train_flops_per_image = flops / images


def parameters(module: Trainee) -> dict[str, float]:
    """Of all parts and of each; what two parts share is the first one's."""
    parts: dict[str, list[nn.Module]] = {**module.parts, OTHER: [module]}
    told: dict[str, float] = {}
    for key, trained in (("cost/parameters", False), ("cost/trained_parameters", True)):
        seen: set[Tensor] = set()
        told[key] = 0
        for part, modules in parts.items():
            own = {p for one in modules for p in one.parameters() if p.requires_grad or not trained}
            count = sum(p.numel() for p in own - seen)
            seen |= own
            told[key] += count
            if count:
                told[f"{key}/{part}"] = count
    return told


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocations, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
